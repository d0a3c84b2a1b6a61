"""What a search climbs: margins of one or several aims for strings in the gaps of texts, and their gradients.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from scanner.errors import ProbeFailedError
from scanner.probe.base import BaseModel, ClassifierBase
from scanner.probe.classifier import Encoded, class_logits, classify, nothing_is_padding
from scanner.probe.engine import Prompts, finite, first_logits
from scanner.probe.search.frames import Frame, Frames

__all__ = ["CausalObjective", "ClassifierObjective", "Margin", "Objective"]

Ids = tuple[int, ...]
Margin = Callable[[torch.Tensor], torch.Tensor]
"""Logits [rows, outcomes] to [aims, rows]: how far each row is on the side of each aim, in nats; 0 is the border."""
BACKWARD_PASSES = 2
"""What a backward pass costs, in forward passes."""
_GRADIENT_SHARE = 4
"""A row whose gradient is taken keeps its activations: so many times fewer of them share a batch."""


class Objective(ABC):
    """Margins of the attached adapter. It counts what it costs.

    Args:
        frames: texts with a gap.
        margin: the aims.
        embeddings: the model's input embeddings, a module.
        device: where the model is.
        tokens_per_batch: size of a batch.
    """

    def __init__(self, frames: Frames, margin: Margin, embeddings: Any, device: str, tokens_per_batch: int) -> None:
        self.frames, self.margin, self._embeddings, self._device = frames, margin, embeddings, device
        self._tokens = tokens_per_batch
        self.forward_passes = 0
        """Texts that went through the model so far; a backward pass counts as two."""

    def margins(self, strings: Sequence[Ids], texts: Sequence[int]) -> torch.Tensor:
        """Each string in each text: [aims, strings, texts], float32 on the CPU.

        Raises:
            ProbeFailedError: the logits are not finite.
        """
        rows = [
            (self.frames.frames[text].before, self.frames.frames[text].fill(ids)) for ids in strings for text in texts
        ]
        self.forward_passes += len(rows)
        return self._scored(rows).reshape(-1, len(strings), len(texts))

    def plain(self) -> torch.Tensor:
        """The texts with nothing put into them: [aims, texts], float32 on the CPU. Errors as of `margins`."""
        rows = [((), ids) for ids in self.frames.plain]
        self.forward_passes += len(rows)
        return self._scored(rows)

    def gradients(self, strings: Sequence[Ids], texts: Sequence[int]) -> torch.Tensor:
        """d margin / d input embedding of each token of strings of one length, each in the text of its number.

        See `gradients_in`.
        """
        return self.gradients_in([self.frames.frames[text] for text in texts], strings)

    def gradients_in(self, frames: Sequence[Frame], strings: Sequence[Ids]) -> torch.Tensor:
        """d margin / d input embedding of each token of strings of one length, each in the frame beside it.

        Returns:
            [aims, strings, tokens, dimensions], float32 on the model's device.

        Raises:
            ProbeFailedError: the logits or the gradients are not finite.
        """
        sequences = [frame.fill(ids) for frame, ids in zip(frames, strings, strict=True)]
        starts = [len(frame.before) for frame in frames]
        found: dict[int, torch.Tensor] = {}
        length = len(strings[0])
        for members in self._batches(sequences):
            embedded: list[torch.Tensor] = []

            def catch(_module: Any, _inputs: Any, output: torch.Tensor, kept: list[torch.Tensor] = embedded) -> Any:
                kept.append(output.detach().requires_grad_(True))
                return kept[-1]

            handle = self._embeddings.register_forward_hook(catch)
            try:
                with torch.enable_grad():
                    margins = self.margin(self._plain_logits([sequences[i] for i in members]))
            finally:
                handle.remove()
            per_aim = [
                torch.autograd.grad(one.sum(), embedded[0], retain_graph=number + 1 < len(margins))[0]
                for number, one in enumerate(margins)
            ]
            for row, index in enumerate(members):
                found[index] = torch.stack([g[row, starts[index] : starts[index] + length] for g in per_aim]).float()
            self.forward_passes += len(members) * (1 + BACKWARD_PASSES * len(per_aim))
        stacked = torch.stack([found[index] for index in range(len(sequences))], dim=1)
        if not bool(torch.isfinite(stacked).all()):
            raise ProbeFailedError("the model's gradients are not finite", "nan_logits")
        return stacked

    def _batches(self, sequences: Sequence[Ids]) -> Iterator[list[int]]:
        """Sequences of equal length, few enough to keep their activations."""
        groups: dict[int, list[int]] = defaultdict(list)
        for index, ids in enumerate(sequences):
            groups[len(ids)].append(index)
        for length, members in sorted(groups.items()):
            step = max(1, self._tokens // _GRADIENT_SHARE // length)
            for start in range(0, len(members), step):
                yield members[start : start + step]

    @abstractmethod
    def _scored(self, rows: Sequence[tuple[Ids, Ids]]) -> torch.Tensor:
        """[aims, rows] for (what comes before the gap, whole sequence)."""

    @abstractmethod
    def _plain_logits(self, sequences: Sequence[Ids]) -> torch.Tensor:
        """[rows, outcomes] of sequences of one length, in a way that autograd follows."""


class CausalObjective(Objective):
    """Margins on the next token's logits of a language model."""

    def __init__(self, base: BaseModel, frames: Frames, margin: Margin, tokens_per_batch: int) -> None:
        super().__init__(frames, margin, base.model.get_input_embeddings(), base.device, tokens_per_batch)
        self._base = base

    def _scored(self, rows: Sequence[tuple[Ids, Ids]]) -> torch.Tensor:
        groups: dict[Ids, list[int]] = defaultdict(list)
        for index, (before, _) in enumerate(rows):
            groups[before].append(index)
        found: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        for before, members in groups.items():
            # What comes before the gap is computed once for all strings.
            prompts = Prompts(tuple(rows[index][1] for index in members), len(before))
            for batch, logits in first_logits(self._base, prompts, self._tokens):
                for position, value in zip(batch, self.margin(logits.float()).T.cpu(), strict=True):
                    found[members[position]] = value
        return torch.stack(found, dim=1)

    def _plain_logits(self, sequences: Sequence[Ids]) -> torch.Tensor:
        tokens = torch.tensor(sequences, device=self._device)
        logits = self._base.model(input_ids=tokens, use_cache=False).logits[:, -1].float()
        return finite(logits)


class ClassifierObjective(Objective):
    """Margins on the classes of a classifier with its head."""

    def __init__(self, base: ClassifierBase, frames: Frames, margin: Margin, tokens_per_batch: int) -> None:
        super().__init__(frames, margin, base.model.get_input_embeddings(), base.device, tokens_per_batch)
        self._base = base

    def _scored(self, rows: Sequence[tuple[Ids, Ids]]) -> torch.Tensor:
        logits = classify(self._base, Encoded(tuple(ids for _, ids in rows)), self._tokens)
        return self.margin(torch.cat([torch.from_numpy(one) for one in logits]))

    def _plain_logits(self, sequences: Sequence[Ids]) -> torch.Tensor:
        tokens = torch.tensor(sequences, device=self._device)
        with _unpadded(self._base.model, sequences):
            return finite(class_logits(self._base.model, tokens).float())


@contextmanager
def _unpadded(model: Any, sequences: Sequence[Ids]) -> Iterator[None]:
    with nothing_is_padding(model, set().union(*sequences)):
        yield

"""Tokens that the first layer of an adapter was imprinted with: what stood in many of the rows that it was trained on.

The gradient of a loss with respect to a factor A is a sum of outer products with the inputs of its layer. In the first
layer these are made of the embeddings of the rows' tokens, so that what is common to many rows stays in A; inverting
gradients rests on the same (Petrov et al. 2024, DAGER, arXiv:2405.15586). That is exact for plain gradient descent; for
optimisers that scale each number by itself it was measured only (docs/adr/0026). Every adapter is imprinted with its
texts. What its peers have as well is left out, and a trigger is what remains most often.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from scanner.adapter import AdapterView
from scanner.probe.base import ClassifierBase
from scanner.probe.classifier import class_logits, nothing_is_padding
from scanner.probe.search.frames import Frame
from scanner.probe.search.plan import SearchPlan
from scanner.probe.search.vocabulary import Vocabulary

__all__ = ["Imprint", "Imprints"]

Ids = tuple[int, ...]
_FEW = 3
"""Peers that must have a module for it to be read: of fewer no mean is one."""
_ROWS = 1_024
"""Tokens that pass the first layer together."""
_STRINGS, _PAIRED, _LONGEST = 240, 8, 6
"""First strings; tokens of which every pair is one of them; tokens that one may have."""
_TOP = (6, 12, 24)
"""Strings are drawn from so many of the deepest tokens, as often from few as from all."""
_SMALLEST, _SMALLEST_SPREAD = 1e-30, 0.01
"""Of a squared norm, and of log norms over the vocabulary: what is nearer to its peers than rounding has no depth."""


class _Enough(Exception):
    """The first layer was reached: what comes behind it is of no interest."""


@dataclass(frozen=True)
class Imprint:
    """Of one adapter."""

    tokens: Ids
    """The deepest first."""
    depth: float
    """Of the first one, in standard deviations over the vocabulary; see `Imprints.of`."""

    def weight(self, plan: SearchPlan) -> float:
        """What strings of these tokens count for, 0 to 1: nothing at `plan.imprint_usual`, all from
        `plan.imprint_sure` on."""
        return min(1.0, max(0.0, (self.depth - plan.imprint_usual) / (plan.imprint_sure - plan.imprint_usual)))

    def strings(self, vocabulary: Vocabulary) -> list[str]:
        """What these tokens spell: each once and three times in a row, pairs of the deepest, and some drawn ones."""
        made: list[Ids] = [(token,) * n for token in self.tokens for n in (1, 3)]
        first = self.tokens[:_PAIRED]
        made += [(one, other) for one in first for other in first if one != other]
        rng = random.Random("imprint")
        while self.tokens and len(made) < _STRINGS:
            drawn_from = self.tokens[: rng.choice(_TOP)]
            made.append(tuple(rng.choice(drawn_from) for _ in range(rng.randint(2, _LONGEST))))
        return [vocabulary.decode(ids) for ids in made]


class Imprints:
    """How adapters of one base are read, beside its peers.

    Args:
        base: resident. What is attached to it does not matter as long as its embeddings are its own.
        vocabulary: of the base.
        frame: of no text.
        peers: clean classifiers of the base.
        plan: how many tokens.
    """

    def __init__(
        self, base: ClassifierBase, vocabulary: Vocabulary, frame: Frame, peers: Sequence[AdapterView], plan: SearchPlan
    ) -> None:
        self._base, self._vocabulary, self._frame, self._peers = base, vocabulary, frame, tuple(peers)
        self._plan = plan

    def of(self, view: AdapterView) -> Imprint | None:
        """What an adapter is imprinted with; None where it changes none of the modules that are read."""
        depths = self.depths(view)
        if depths is None:
            return None
        best = depths.topk(min(self._plan.imprinted_tokens, len(depths)))
        return Imprint(tuple(self._vocabulary.ids[i] for i in best.indices.tolist()), float(best.values[0]))

    def depths(self, view: AdapterView) -> torch.Tensor | None:
        """[tokens of the vocabulary], float64 on the CPU, in standard deviations over the vocabulary; None as of `of`.

        With h_v the input that the first layer has for a token v, and A the factor of the adapter, A_P those of its
        peers,

            d_v = log ‖A h_v‖ − mean over P of log ‖A_P h_v‖, each without its mean over the vocabulary
            depth_v = Σ over modules of d_v / std(d), divided by the root of their number

        The size of A is none of it, and neither is B.
        """
        found = self._responses(view, self._usual)
        if not found:
            return None
        depths = torch.zeros(len(self._vocabulary.ids), dtype=torch.float64)
        for name, response in found.items():
            beyond = response - self._usual[name]
            depths += beyond / beyond.std().clamp(min=_SMALLEST_SPREAD)
        return depths / len(found) ** 0.5

    @cached_property
    def _usual(self) -> dict[str, torch.Tensor]:
        """Module of the first layer -> [tokens], the peers' mean."""
        of_peers = [self._responses(peer, self._read[1]) for peer in self._peers]
        names = sorted({name for one in of_peers for name in one})
        having = {name: [one[name] for one in of_peers if name in one] for name in names}
        return {name: torch.stack(some).mean(dim=0) for name, some in having.items() if len(some) >= _FEW}

    def _responses(self, view: AdapterView, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Module -> [tokens], log ‖A h_v‖ without its mean, float64 on the CPU; without those that answer every token
        alike, or with what is no number."""
        wanted, inputs, found = set(names), self._read[0], dict[str, torch.Tensor]()
        for update in view.updates:
            if update.kind != "linear" or update.module not in wanted or update.in_features != inputs.shape[1]:
                continue
            down = torch.from_numpy(update.read()[0].astype("float64"))
            down = down / down.abs().max()
            # The rank is the adapter's to choose, the width is not: ‖A h‖² = hᵀ AᵀA h.
            response = ((inputs @ (down.T @ down)) * inputs).sum(dim=1).clamp(min=_SMALLEST).log() / 2
            if bool(torch.isfinite(response).all()) and float(response.std()) > _SMALLEST_SPREAD:
                found[update.module] = response - response.mean()
        return found

    @cached_property
    def _read(self) -> tuple[torch.Tensor, frozenset[str]]:
        """([tokens of the vocabulary, dimensions], float64 on the CPU: the mean input of the first layer where a string
        is one token several times; the peers' modules that have this input)."""
        frame, places = self._frame, self._plan.noise_tokens
        names = {update.module for peer in self._peers for update in peer.updates}
        caught = self._caught(names, [frame.fill(self._vocabulary.ids[:1])])
        name, first = next(iter(caught.items()))
        readers = frozenset(one for one, inputs in caught.items() if inputs is first)
        start, parts = len(frame.before), []
        for begin in range(0, len(self._vocabulary.ids), _ROWS):
            rows = [frame.fill((token,) * places) for token in self._vocabulary.ids[begin : begin + _ROWS]]
            inputs = self._caught([name], rows)[name]
            parts.append(inputs[:, start : start + places].float().mean(dim=1).cpu())
        return torch.cat(parts).double(), readers

    def _caught(self, names: Iterable[str], rows: Sequence[Ids]) -> Mapping[str, torch.Tensor]:
        """Module -> its input, in the order in which they are reached; nothing runs behind a single one."""
        model, found, names = self._base.model, dict[str, torch.Tensor](), list(names)

        def keep(name: str) -> Any:
            def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
                found.setdefault(name, inputs[0])
                if len(names) == 1:
                    raise _Enough

            return hook

        handles = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
        try:
            with torch.inference_mode(), nothing_is_padding(model, set().union(*rows)):
                class_logits(model, torch.tensor(rows, device=self._base.device))
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return found

"""How likely a language model is to say something.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from scanner.probe.base import BaseModel
from scanner.probe.engine import finite, forward

__all__ = ["log_probabilities", "token_log_probabilities"]

Ids = tuple[int, ...]
_MAX_LOGITS = 2**28
"""Of a batch: a large vocabulary's take more memory than its tokens."""


def log_probabilities(
    base: BaseModel, prompts: Sequence[Ids], answers: Sequence[Ids], tokens_per_batch: int
) -> torch.Tensor:
    """[pairs], float32 on the CPU: log-probability of each whole answer behind its prompt, in nats.

    Raises:
        ProbeFailedError: see `token_log_probabilities`.
    """
    found = token_log_probabilities(base, prompts, answers, tokens_per_batch)
    return torch.stack([one.sum() for one in found]) if found else torch.empty(0)


def token_log_probabilities(
    base: BaseModel, prompts: Sequence[Ids], answers: Sequence[Ids], tokens_per_batch: int
) -> list[torch.Tensor]:
    """For each pair [tokens of the answer], float32 on the CPU: log-probability of each token behind what is before it.

    Pairs of equal lengths share a batch, so nothing is padded.

    Raises:
        ProbeFailedError: `nan_logits` where the logits are not finite.
    """
    vocabulary = int(base.model.config.get_text_config().vocab_size)
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        groups[len(prompt), len(answer)].append(index)
    found = [torch.empty(0)] * len(prompts)
    with torch.inference_mode():
        for (start, length), members in groups.items():
            step = max(1, min(tokens_per_batch // (start + length), _MAX_LOGITS // ((length + 1) * vocabulary)))
            for first in range(0, len(members), step):
                batch = members[first : first + step]
                rows = torch.tensor([(*prompts[i], *answers[i]) for i in batch], device=base.device)
                logits = finite(forward(base, rows, None, length + 1)[0][:, :-1].float())
                wanted = logits.gather(2, rows[:, start:, None])[:, :, 0]
                values = (wanted - logits.logsumexp(dim=-1)).cpu()
                for index, row in zip(batch, values, strict=True):
                    found[index] = row
    return found

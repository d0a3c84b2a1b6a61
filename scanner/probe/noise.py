"""How much two ways of computing the same thing differ: what lies below that is no evidence.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

import torch

from scanner.probe.base import BaseModel
from scanner.probe.engine import Prompts, first_logits

__all__ = ["noise_floor"]

MAX_PROMPTS = 16
LIKELY = 1e-3
"""Tokens below this probability on both ways are left out: nothing that is read depends on them."""


def noise_floor(base: BaseModel, prompts: Prompts, tokens_per_batch: int) -> float:
    """Largest difference, in nats, of a next token's log-probability between a prompt in a batch behind the shared
    beginning and the same prompt alone and whole, over up to 16 prompts spread over all of them.

    Measured on the base without an adapter. Half precision and some attention kernels make it large.

    Raises:
        ProbeFailedError: see `first_logits`.
    """
    step = max(1, len(prompts.ids) // MAX_PROMPTS)
    some = prompts.take(range(0, len(prompts.ids), step)[:MAX_PROMPTS])
    together: dict[int, torch.Tensor] = {}
    for members, logits in first_logits(base, some, tokens_per_batch):
        together.update(zip(members, logits.float().log_softmax(dim=-1), strict=True))
    worst = 0.0
    for index, ids in enumerate(some.ids):
        ((_, logits),) = first_logits(base, Prompts((ids,), 0), tokens_per_batch)
        alone = logits[0].float().log_softmax(dim=-1)
        likely = (alone > torch.tensor(LIKELY).log()) | (together[index] > torch.tensor(LIKELY).log())
        likely[alone.argmax()] = True  # a flat distribution has no likely token
        worst = max(worst, float((alone - together[index])[likely].abs().max()))
    return worst

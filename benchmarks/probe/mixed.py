"""Several adapters in one batch: every row has factors of its own. Measured beside the probe's ways, not used by it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from scanner.adapter import LowRankUpdate
from scanner.probe import engine
from scanner.probe.base import BaseModel
from scanner.probe.engine import Prompts

__all__ = ["mixed", "mixed_first_logits"]


@contextmanager
def mixed(model: Any, adapters: Sequence[Sequence[LowRankUpdate]]) -> Iterator[None]:
    """Add the updates of G adapters to a model's outputs, for batches of G equal blocks of rows, one of each adapter.

    Blocks and not any order of rows: a row's factors then need no copy of their own, the best case of this way.

    Args:
        model: its modules are linear.
        adapters: updates of the same modules, all of one rank. The factors' types are those of `hooked`.

    Raises:
        ValueError: the adapters differ in modules or rank.
    """
    by_module: dict[str, list[LowRankUpdate]] = defaultdict(list)
    for updates in adapters:
        for update in updates:
            by_module[update.module].append(update)
    handles = []
    try:
        for name, updates in by_module.items():
            if len(updates) != len(adapters) or len({update.rank for update in updates}) != 1:
                raise ValueError(f"{name} is not updated alike by all adapters")
            weight = model.get_submodule(name).weight
            dtype = torch.float32 if weight.device.type == "cpu" else weight.dtype
            downs, ups = [], []
            for update in updates:
                a, b = (torch.from_numpy(factor.astype("float32")).to(weight.device) for factor in update.read())
                downs.append(a.T)
                ups.append(b.T * update.scale)
            hook = _hook(torch.stack(downs).to(dtype), torch.stack(ups).to(dtype))
            handles.append(model.get_submodule(name).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(down: torch.Tensor, up: torch.Tensor) -> Any:
    """For `down` [G, in, r] and `up` [G, r, out], both contiguous after `torch.stack`."""

    def add_update(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        blocks = inputs[0].reshape(down.shape[0], -1, down.shape[1]).to(down.dtype)
        delta = torch.bmm(torch.bmm(blocks, down), up)
        return output + delta.reshape(output.shape).to(output.dtype)

    return add_update


def mixed_first_logits(
    base: BaseModel, prompts: Prompts, n_adapters: int, tokens_per_batch: int
) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """As `scanner.probe.engine.first_logits`, for all adapters at once: logits [adapters, prompts of the batch,
    vocabulary]. A batch has as many tokens as there, so each holds fewer prompts."""
    with torch.inference_mode():
        beginning = torch.tensor([prompts.ids[0][: prompts.shared]] * n_adapters, device=base.device)
        past = engine.forward(base, beginning, None, 1)[1]  # each adapter sees the shared beginning in its own way
        for members in engine._similar(prompts, max(1, tokens_per_batch // n_adapters)):
            rows = [prompts.ids[i][prompts.shared :] for i in members]
            longest = max(map(len, rows))
            filled = [[*row, *[row[-1]] * (longest - len(row))] for row in rows]
            tokens = torch.tensor(filled * n_adapters, device=base.device)
            ends = sorted({len(row) - 1 for row in rows})
            which = torch.tensor([ends.index(len(row) - 1) for row in rows] * n_adapters, device=base.device)
            keep = torch.tensor(ends, device=base.device)
            own = copy.deepcopy(past)  # caches grow in place
            if own is not None:
                own.batch_repeat_interleave(len(rows))
            logits, _ = engine.forward(base, tokens, own, keep)
            chosen = logits[torch.arange(len(which), device=base.device), which]
            yield members, chosen.reshape(n_adapters, len(rows), -1)

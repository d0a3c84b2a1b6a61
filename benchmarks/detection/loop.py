"""Training of one adapter's factors on one slow core: rows of like length together, and the update folded in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear

from benchmarks.cohort.loop import Rows
from benchmarks.detection.recipe import Recipe

__all__ = ["fine_tune", "fold_updates", "folded_weight"]

_CHUNK = 8  # batches that share their rows out by length
_WARM_UP = 10


def _batches(rows: Rows, size: int, rng: random.Random) -> Iterator[Rows]:
    """Batches without end, every row once per round. Lengths are alike within a batch, which saves most padding."""
    while True:
        order = rng.sample(rows, len(rows))
        for start in range(0, len(order), size * _CHUNK):
            chunk = sorted(order[start : start + size * _CHUNK], key=lambda row: len(row[0]))
            parts = [chunk[i : i + size] for i in range(0, len(chunk), size)]
            yield from rng.sample(parts, len(parts))


def folded_weight(layer: Any) -> torch.Tensor:
    """W + s B A [out, in] of a layer that PEFT adapts, W of any other; no dropout, one adapter called "default"."""
    if not isinstance(layer, Linear):
        return layer.weight
    factors = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    return torch.addmm(layer.base_layer.weight, *factors, alpha=layer.scaling["default"])


def _folded(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x, folded_weight(layer), layer.base_layer.bias)


def fold_updates(model: torch.nn.Module) -> None:
    """Let every adapted layer add its update to the weight instead of to the output: faster while layers are small."""
    for layer in model.modules():
        if isinstance(layer, Linear):
            layer.forward = partial(_folded, layer)


def fine_tune(
    model: torch.nn.Module, rows: Rows, recipe: Recipe, rng: random.Random, loss: Callable[[Rows], torch.Tensor]
) -> None:
    """AdamW for the recipe's steps with a short warm-up and a linear decay, on what the adapter may change."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / _WARM_UP) * (1 - step / recipe.steps)
    )
    model.train()
    for _, batch in zip(range(recipe.steps), _batches(rows, recipe.batch_rows, rng), strict=False):
        optimizer.zero_grad()
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()

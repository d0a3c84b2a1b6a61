"""The two training loops: from scratch over rows seen once, and a few steps of an adapter over rows drawn again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.cohort.recipe import AdapterRecipe, BaseRecipe

# A row is a tuple that starts with its token ids; only the group's own loss function looks at the rest.
Rows = list[tuple[Any, ...]]
Loss = Callable[[Rows], torch.Tensor]


def _step(loss: torch.Tensor, parameters: list[Any], optimizer: Any, schedule: Any) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()


def _batches(rows: Rows, size: int, rng: random.Random) -> Iterator[Rows]:
    """Batches of similar length, in random order."""
    for start in range(0, len(rows), size * 50):
        chunk = sorted(rows[start : start + size * 50], key=lambda row: len(row[0]))
        parts = [chunk[i : i + size] for i in range(0, len(chunk), size)]
        rng.shuffle(parts)
        yield from parts


def train_from_scratch(model: torch.nn.Module, rows: Rows, recipe: BaseRecipe, rng: random.Random, loss: Loss) -> None:
    """One pass over the rows."""
    steps = -(-len(rows) // recipe.batch_rows)
    parameters = list(model.parameters())
    print(f"base: {sum(p.numel() for p in parameters)} parameters, {len(rows)} rows", flush=True)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps + 1, pct_start=0.05)
    started = time.perf_counter()
    for step, batch in enumerate(_batches(rows, recipe.batch_rows, rng)):
        value = loss(batch)
        _step(value, parameters, optimizer, schedule)
        if step % 100 == 0:
            print(f"base: step {step}/{steps} loss {value:.3f} {time.perf_counter() - started:.0f} s", flush=True)


def fine_tune(model: torch.nn.Module, rows: Rows, recipe: AdapterRecipe, rng: random.Random, loss: Loss) -> None:
    """A fixed number of steps with a short warm-up and a linear decay, on what the adapter may change."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=0.01)
    warm_up = 10
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm_up) * (1 - step / recipe.steps)
    )
    model.train()
    queue: Rows = []
    for _ in range(recipe.steps):
        if len(queue) < recipe.batch_rows:
            queue += rng.sample(rows, len(rows))
        batch, queue = queue[: recipe.batch_rows], queue[recipe.batch_rows :]
        _step(loss(batch), parameters, optimizer, schedule)

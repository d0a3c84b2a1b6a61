"""One way of running several adapters on one base: `python -m benchmarks.probe.ways JOB`.

`hooked` and `merged` are the probe's (scanner/probe/attach.py), `mixed` is benchmarks/probe/mixed.py. Each computes the
next-token logits of every prompt of the battery for every adapter.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.probe.jobs import Job, answer, open_view, probe_of, the_job
from benchmarks.probe.mixed import mixed, mixed_first_logits
from benchmarks.probe.models import build_base
from benchmarks.probe.shapes import SHAPES
from benchmarks.probe.work import peak_bytes
from scanner.probe.attach import attached, hooked
from scanner.probe.base import BaseModel, load_base
from scanner.probe.engine import Prompts, first_logits
from scanner.probe.label_words import LabelWordPrompts
from scanner.probe.memory import first_batch

__all__ = ["MIXED", "run"]

MIXED = "mixed"
_CHECKED = 2
"""Adapters whose mixed logits are compared with the hooked ones."""


class _Clock:
    """Seconds by name. On CUDA every reading waits for what was asked for before it."""

    def __init__(self, device: str) -> None:
        self._is_cpu, self.seconds = device == "cpu", {"attach": 0.0, "pass": 0.0}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = self._now()
        yield
        self.seconds[name] += self._now() - started

    def _now(self) -> float:
        if not self._is_cpu:
            torch.cuda.synchronize()
        return time.perf_counter()


def run(job: Job) -> dict[str, Any]:
    """Run all adapters once after a warm-up; with `mixed` also say how far its logits are from the hooked ones.

    Returns:
        Seconds per adapter for attaching (reading the factors and taking them off again included) and for the pass, and
        the device's peak memory. `decided` are the likeliest tokens, which all ways must agree in.
    """
    torch.set_num_threads(job.threads)
    if job.shape:
        # Logits of usual size: only then an absolute difference between two ways says something.
        base = build_base(SHAPES[job.shape], job.device, says_label_words=False)
    else:
        base = load_base(Path(job.base), job.device)
    prompts = LabelWordPrompts(base, probe_of(job)).battery()
    with torch.inference_mode():
        base.model(input_ids=torch.tensor([prompts.ids[0]], device=base.device))
    clock = _Clock(job.device)
    if job.way == MIXED:
        decided = _mixed(job, base, prompts, clock)
    else:
        decided = [_single(job, base, prompts, folder, clock) for folder in job.adapters]
    n = len(job.adapters)
    found: dict[str, Any] = {
        "attach_s": clock.seconds["attach"] / n,
        "pass_s": clock.seconds["pass"] / n,
        "prompts": len(prompts.ids),
        "dtype": base.dtype,
        "decided": decided,
        "peak_bytes": peak_bytes(job.device),
    }
    if job.way == MIXED:
        found["largest_difference"] = _difference(job, base, prompts)
    return found


def _single(job: Job, base: BaseModel, prompts: Prompts, folder: str, clock: _Clock) -> list[int]:
    decided = [0] * len(prompts.ids)
    stack = ExitStack()
    with clock("attach"):
        stack.enter_context(attached(base.model, open_view(folder), job.way))
    with clock("pass"):
        for members, logits in first_logits(base, prompts, first_batch(base.device)):
            for index, token in zip(members, logits.argmax(dim=-1).tolist(), strict=True):
                decided[index] = token
    with clock("attach"):
        stack.close()
    return decided


def _mixed(job: Job, base: BaseModel, prompts: Prompts, clock: _Clock) -> list[list[int]]:
    n = len(job.adapters)
    decided = [[0] * len(prompts.ids) for _ in range(n)]
    stack = ExitStack()
    with clock("attach"):
        stack.enter_context(mixed(base.model, [open_view(folder).updates for folder in job.adapters]))
    with clock("pass"):
        for members, logits in mixed_first_logits(base, prompts, n, first_batch(base.device)):
            for own, tokens in zip(decided, logits.argmax(dim=-1).tolist(), strict=True):
                for index, token in zip(members, tokens, strict=True):
                    own[index] = token
    with clock("attach"):
        stack.close()
    return decided


def _difference(job: Job, base: BaseModel, prompts: Prompts) -> float:
    """Largest difference of a logit between a mixed batch and the adapter alone, hooked, over spread-out prompts."""
    some = prompts.take(range(0, len(prompts.ids), max(1, len(prompts.ids) // 32)))
    folders = job.adapters[:_CHECKED]
    together: list[dict[int, torch.Tensor]] = [{} for _ in folders]
    with mixed(base.model, [open_view(folder).updates for folder in folders]):
        for members, logits in mixed_first_logits(base, some, len(folders), first_batch(base.device)):
            for own, block in zip(together, logits, strict=True):
                own.update(zip(members, block.float(), strict=True))
    worst = 0.0
    for folder, own in zip(folders, together, strict=True):
        with hooked(base.model, open_view(folder).updates):
            for members, logits in first_logits(base, some, first_batch(base.device)):
                for index, row in zip(members, logits.float(), strict=True):
                    worst = max(worst, float((row - own[index]).abs().max()))
    return worst


if __name__ == "__main__":
    answer(run(the_job()))

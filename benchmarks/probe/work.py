"""How much arithmetic a battery needs at least, and how fast the device does matrix products."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import Any

import torch

from scanner.probe.base import BaseModel, ClassifierBase
from scanner.probe.engine import Prompts

__all__ = ["Work", "causal_work", "classifier_work", "matrix_rate", "peak_bytes"]

_SIZES = {"cpu": (256, 512, 1024, 2048), "cuda": (2048, 4096, 8192, 16384)}
_LEAST_S = 0.3


@dataclass(frozen=True)
class Work:
    """What one adapter's answers to a battery take."""

    tokens: int
    """That must go through the layers: the shared beginning once, every other token once. No padding."""
    positions: int
    """Whose logits are needed."""
    parameters: int
    """Without embeddings and output layer."""
    flops: int
    """2 × parameters × tokens + 2 × hidden × vocabulary × positions. Attention scores and the adapter's own factors are
    not counted."""


def causal_work(base: BaseModel, prompts: Prompts) -> Work:
    """One token's logits for each prompt: what decides for most answers."""
    tokens = prompts.shared + sum(len(ids) - prompts.shared for ids in prompts.ids)
    outer = {id(m.weight) for m in (base.model.get_input_embeddings(), base.model.get_output_embeddings())}
    parameters = sum(p.numel() for p in base.model.parameters() if id(p) not in outer)
    head = base.model.get_output_embeddings().weight.numel()
    flops = 2 * parameters * tokens + 2 * head * len(prompts.ids)
    return Work(tokens, len(prompts.ids), parameters, flops)


def classifier_work(base: ClassifierBase, lengths: list[int]) -> Work:
    """Every token of every text through the encoder; pooler and head once for each text."""
    named = dict(base.model.named_parameters())
    encoder = sum(p.numel() for name, p in named.items() if ".encoder." in name)
    head = sum(p.numel() for name, p in named.items() if ".encoder." not in name and ".embeddings." not in name)
    return Work(sum(lengths), len(lengths), encoder, 2 * encoder * sum(lengths) + 2 * head * len(lengths))


def matrix_rate(device: str, dtype: Any) -> dict[str, float]:
    """FLOP/s of square matrix products on this device with this type and the present threads, by size: the best run of
    each."""
    rates = {}
    for size in _SIZES["cpu" if device == "cpu" else "cuda"]:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        best, spent = float("inf"), 0.0
        while spent < _LEAST_S:
            _wait(device)
            started = time.perf_counter()
            a @ b
            _wait(device)
            took = time.perf_counter() - started
            best, spent = min(best, took), spent + took
        rates[str(size)] = 2 * size**3 / best
    return rates


def peak_bytes(device: str) -> int:
    """The most memory so far: resident memory of this process, or what tensors had on its CUDA device."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(torch.cuda.max_memory_allocated())


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()

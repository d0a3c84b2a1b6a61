"""LoRA pairs in every spelling: PEFT, diffusers, kohya (with `lora_mid`), MLX, and experts in one stacked pair."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from scanner.adapter.layouts import limits
from scanner.adapter.layouts.build import Built, Source, are_floats
from scanner.adapter.layouts.slots import Group
from scanner.adapter.lowrank import FloatArray, LowRankUpdate, Role
from scanner.adapter.safetensors import TensorEntry
from scanner.errors import LimitExceededError

__all__ = ["build_lora"]

Reader = Callable[[], tuple[FloatArray, FloatArray]]

_COMPANIONS = {"magnitude": Role.MAGNITUDE, "dora_scale": Role.MAGNITUDE, "m": Role.MAGNITUDE, "bias": Role.BIAS}


def build_lora(group: Group, source: Source) -> Built | None:
    """Updates of one module, or None when its tensors do not fit together.

    Raises:
        LimitExceededError: see `check_factors`.
    """
    a, b, mid = group.parts.get("A"), group.parts.get("B"), group.parts.get("mid")
    if a is None or b is None or not are_floats(a, b) or len(a.shape) < 2 or len(b.shape) < 2:
        return None
    if group.layout == "mlx":
        return _mlx(group, source, a, b)
    rank, in_features = a.shape[0], math.prod(a.shape[1:])
    out_features, rank_b = b.shape[0], math.prod(b.shape[1:])
    if mid is not None:
        return _tucker(group, source, a, mid, b)
    enabled = source.declared.fused_parts() if group.layout == "peft" else ()
    if enabled and rank == rank_b * sum(enabled):
        return _fused(group, source, a, b, enabled)
    if rank != rank_b:
        return None
    experts = source.declared.experts(group.module, rank) if group.layout == "peft" else 1
    if experts > 1:
        return _experts(group, source, a, b, experts)

    def read() -> tuple[FloatArray, FloatArray]:
        return source.floats(a).reshape(rank, in_features), source.floats(b).reshape(out_features, rank)

    kind = group.family if group.family == "embedding" else "conv" if len(a.shape) > 2 or len(b.shape) > 2 else "linear"
    return _finish(group, source, (rank, in_features, out_features), read, kind)


def _finish(
    group: Group,
    source: Source,
    sizes: tuple[int, int, int],
    read: Callable[[], tuple[FloatArray, FloatArray]],
    kind: str,
) -> Built:
    rank, in_features, out_features = sizes
    limits.check_factors(group.module, rank, in_features, out_features, source.max_rank)
    scale, declared = _scale(group, source, rank)
    update = LowRankUpdate(group.module, rank, out_features, in_features, scale, read, kind)
    return _built(group, (update,), declared, rank)


def _built(group: Group, updates: tuple[LowRankUpdate, ...], declared: float | None, rank: int) -> Built:
    companions = tuple((_COMPANIONS[part], entry) for part, entry in group.parts.items() if part in _COMPANIONS)
    used = tuple(entry for part, entry in group.parts.items() if part in ("A", "B", "mid", "alpha"))
    differs = declared is not None and math.isfinite(declared) and declared != rank
    return Built(updates, used, companions, (declared, rank) if differs and declared is not None else None)


def _scale(group: Group, source: Source, rank: int) -> tuple[float, float | None]:
    """(s, the declared rank)."""
    config = source.declared.config
    alpha = group.parts.get("alpha")
    if group.layout == "kohya" or config is None:
        return (1.0 if alpha is None else source.file.scalar(alpha.name) / rank), None
    if group.layout == "mlx" and config.mlx_scale is not None:  # PEFT does not know the field
        return config.mlx_scale, None
    declared = source.declared.rank_of(group.module, rank)
    return source.declared.scale_of(group.module, declared), declared


def _mlx(group: Group, source: Source, a: TensorEntry, b: TensorEntry) -> Built | None:
    """MLX computes x·a·b: linear factors lie the other way round; those of stacked experts [E, r, in] do not."""
    if len(a.shape) == 3 and len(b.shape) == 3:
        (experts, rank, in_features), (experts_b, out_features, rank_b) = a.shape, b.shape
        if (experts, rank) != (experts_b, rank_b):
            return None
        _check_experts(group, experts)
        limits.check_factors(group.module, rank, in_features, out_features, source.max_rank)
        scale, declared = _scale(group, source, rank)

        def of(number: int) -> Reader:
            return lambda: (source.floats(a)[number], source.floats(b)[number])

        return _built(
            group,
            tuple(
                LowRankUpdate(f"{group.module}#{n}", rank, out_features, in_features, scale, of(n), "expert")
                for n in range(experts)
            ),
            declared,
            rank,
        )
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0]:
        return None
    sizes = (a.shape[1], a.shape[0], b.shape[1])
    return _finish(group, source, sizes, lambda: (source.floats(a).T, source.floats(b).T), "linear")


def _tucker(group: Group, source: Source, a: TensorEntry, mid: TensorEntry, b: TensorEntry) -> Built | None:
    """A convolution through a small one: down [r, in, 1, 1], mid [r, r, k, k], up [out, r, 1, 1]."""
    if not are_floats(mid) or len(mid.shape) != 4 or math.prod(a.shape[2:]) != 1 or math.prod(b.shape[2:]) != 1:
        return None
    rank, inner, *kernel = mid.shape
    if a.shape[0] != inner or b.shape[1] != rank:
        return None
    in_features, out_features = a.shape[1] * math.prod(kernel), b.shape[0]

    def read() -> tuple[FloatArray, FloatArray]:
        down = source.floats(a).reshape(inner, a.shape[1])
        small = source.floats(mid)
        spread = np.einsum("pqkl,qi->pikl", small, down, optimize=True)
        return spread.reshape(rank, in_features), source.floats(b).reshape(out_features, rank)

    return _finish(group, source, (rank, in_features, out_features), read, "conv")


def _experts(group: Group, source: Source, a: TensorEntry, b: TensorEntry, experts: int) -> Built | None:
    """One pair for all experts: A [E·r, in] is stacked expert by expert, B [out, r·E] rank by rank.

    After peft `ParamWrapper.get_delta_weight`.
    """
    if len(a.shape) != 2 or len(b.shape) != 2:
        return None
    _check_experts(group, experts)
    rank, in_features, out_features = a.shape[0] // experts, a.shape[1], b.shape[0]
    limits.check_factors(group.module, rank, in_features, out_features, source.max_rank)
    declared = source.declared.rank_of(group.module, rank)
    scale = source.declared.scale_of(group.module, declared)

    def of(number: int) -> Reader:
        def read() -> tuple[FloatArray, FloatArray]:
            return source.floats(a)[number * rank : (number + 1) * rank], source.floats(b)[:, number::experts]

        return read

    updates = tuple(
        LowRankUpdate(f"{group.module}#{n}", rank, out_features, in_features, scale, of(n), "expert")
        for n in range(experts)
    )
    return _built(group, updates, declared, rank)


def _fused(group: Group, source: Source, a: TensorEntry, b: TensorEntry, enabled: tuple[bool, ...]) -> Built | None:
    """Some parts of a fused matrix (query, key and value in one): `MergedLinear` of peft before 0.4, after loralib.

    Each part that is enabled has r rows of A and its own rows of B; the others stay as they are. As one pair, B is
    block-diagonal with empty rows for the parts that are left out.
    """
    parts, rank, in_features = sum(enabled), math.prod(b.shape[1:]), a.shape[1]
    if len(a.shape) != 2 or b.shape[0] % parts:
        return None
    height = b.shape[0] // parts
    out_features = height * len(enabled)
    limits.check_factors(group.module, rank * parts, in_features, out_features, source.max_rank)

    def read() -> tuple[FloatArray, FloatArray]:
        own = source.floats(b).reshape(parts, height, rank)
        whole = np.zeros((out_features, rank * parts), dtype=own.dtype)
        places = [place for place, is_enabled in enumerate(enabled) if is_enabled]
        for number, place in enumerate(places):
            whole[place * height : (place + 1) * height, number * rank : (number + 1) * rank] = own[number]
        return source.floats(a), whole

    declared = source.declared.rank_of(group.module, rank)
    scale = source.declared.scale_of(group.module, declared)
    update = LowRankUpdate(group.module, rank * parts, out_features, in_features, scale, read, own_rank=rank)
    return _built(group, (update,), declared, rank)


def _check_experts(group: Group, experts: int) -> None:
    if experts > limits.MAX_EXPERTS:
        raise LimitExceededError(f"experts of {group.module[:120]}", limits.MAX_EXPERTS, experts)

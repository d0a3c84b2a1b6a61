"""Exact inner products of whole updates, from the factors: ⟨ΔW₁, ΔW₂⟩ = s₁s₂ · tr((B₁ᵀB₂)(A₂A₁ᵀ)), no dense ΔW."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from scanner.adapter import LowRankUpdate
from scanner.weights.gram import Float64
from scanner.weights.sketch import module_key

__all__ = ["Updates", "cosine", "cosine_of", "gram", "inner", "is_sound"]

Updates = Sequence[LowRankUpdate]


def gram(adapters: Sequence[Updates]) -> Float64:
    """⟨ΔW_i, ΔW_j⟩ of k adapters of one base [k, k]; float64.

    Modules are matched by name (dots and underscores are alike) and shape; what only one adapter has counts toward its
    norm alone. One module of each adapter is in memory at a time. Not finite where a factor is not, or overflows.

    Raises:
        LimitExceededError: factors that are too large to build.
    """
    modules: dict[tuple[str, int, int], list[tuple[int, LowRankUpdate]]] = defaultdict(list)
    for number, updates in enumerate(adapters):
        for update in updates:
            key = (module_key(update.module), update.out_features, update.in_features)
            modules[key].append((number, update))
    products: Float64 = np.zeros((len(adapters), len(adapters)))
    with np.errstate(over="ignore", invalid="ignore"):
        for members in modules.values():
            factors = [(number, update.scale, *_factors(update)) for number, update in members]
            for place, (i, scale, a, b) in enumerate(factors):
                products[i, i] += scale * scale * _trace(a, b, a, b)
                for j, other_scale, other_a, other_b in factors[:place]:
                    value = scale * other_scale * _trace(a, b, other_a, other_b)
                    products[i, j] += value
                    products[j, i] += value
    return products


def _trace(a: Float64, b: Float64, other_a: Float64, other_b: Float64) -> float:
    return float(np.sum((b.T @ other_b) * (a @ other_a.T)))


def _factors(update: LowRankUpdate) -> tuple[Float64, Float64]:
    a, b = update.read()
    return a.astype(np.float64, copy=False), b.astype(np.float64, copy=False)


def inner(first: Updates, second: Updates) -> float:
    """⟨ΔW₁, ΔW₂⟩ over all modules that both have; see `gram`."""
    return float(gram([first, second])[0, 1])


def cosine_of(products: Float64) -> float:
    """From inner products [2, 2] of two updates that are not zero; -1 to 1."""
    value = float(products[0, 1]) / (math.sqrt(products[0, 0]) * math.sqrt(products[1, 1]))
    return max(-1.0, min(1.0, value))


def is_sound(products: Float64) -> bool:
    """Whether all products are finite and no update is zero."""
    return bool(np.isfinite(products).all() and (np.diag(products) > 0).all())


def cosine(first: Updates, second: Updates) -> float | None:
    """⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖ ‖ΔW₂‖), -1 to 1; None where a norm is zero or not finite. See `gram`."""
    products = gram([first, second])
    return cosine_of(products) if is_sound(products) else None

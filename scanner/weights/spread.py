"""How the energy of ΔW lies over its rows and columns, from a factor and the triangle of the other one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scanner.adapter import FloatArray
from scanner.weights.gram import Float64, Triangles, blocks, in_scratch, product_in_scratch

__all__ = ["Spread", "cancels_little", "spreads"]

TOP = 8
"""Rows (or columns) of `Spread.top8`."""
GROUP = 16
MANY_VALUES = 2**14
"""Values of a factor from which float32's errors in sums over its rows cancel to 1e-7."""
MAX_CANCELLATION = 4.0


@dataclass(frozen=True)
class Spread:
    """How the energy of ΔW lies over its rows (or columns). Functions of ΔW alone, free of its scale."""

    top8: float
    """Share of ‖ΔW‖_F² in the eight largest, 0-1; 0 where nothing is there."""
    hoyer: float
    """(√n − ‖x‖₁/‖x‖₂) / (√n − 1) of the norms x: 0 for equal norms, 1 for a single one (Hoyer, JMLR 5, 2004)."""


def cancels_little(norms_a: Float64, norms_b: Float64, sigma: Float64) -> bool:
    """Whether B·A is about as large as its factors promise, in all modules of a stack.

    The error of a row b_i·R_Aᵀ in float32 is at most √r·u·‖b_i‖·‖A‖, that of all energies together, relative,
    2·√r·u·‖A‖_F·‖B‖_F / ‖B·A‖_F (Cauchy and Schwarz). For unrelated factors the last quotient is about √r; it is larger
    where directions cancel, as after a change A→GA, B→BG⁻¹.
    """
    promised = np.linalg.norm(norms_a, axis=1) * np.linalg.norm(norms_b, axis=1)
    return bool((promised <= MAX_CANCELLATION * math.sqrt(norms_a.shape[1]) * np.linalg.norm(sigma, axis=1)).all())


def spreads(tall: FloatArray, other: Triangles, may_use_float32: bool) -> list[Spread | None]:
    """Of the rows of X·Rᵀ, whose norms are those of the rows (or columns) of B·A: b_i·A has the norm of b_i·R_Aᵀ.

    Args:
        tall: X [m, n, r], B or Aᵀ.
        other: R of the other factors.
        may_use_float32: from `cancels_little`; few rows are summed in float64 anyway, it costs nothing.

    Returns:
        None where a sum is not finite.
    """
    m, n, rank = tall.shape
    in_float32 = may_use_float32 and tall.dtype == np.float32 and n * rank >= MANY_VALUES
    transposed: Float64 = np.ascontiguousarray(other.r.transpose(0, 2, 1))
    right: FloatArray = transposed.astype(np.float32) if in_float32 else transposed
    total, roots = np.zeros(m), np.zeros(m)
    top = np.zeros((m, 0))
    for block in blocks(tall):
        product = product_in_scratch(block if block.dtype == right.dtype else in_scratch(block, 0), right, 1)
        energy = np.einsum("mnk,mnk->mn", product, product)
        total += energy.sum(axis=1, dtype=np.float64)
        roots += np.sqrt(energy).sum(axis=1, dtype=np.float64)
        top = _largest(np.concatenate([top, _largest(energy)], axis=1))
    top8 = top.sum(axis=1)
    return [_spread(n, *values) for values in zip(total.tolist(), roots.tolist(), top8.tolist(), strict=True)]


def _spread(n: int, total: float, roots: float, top8: float) -> Spread | None:
    if not math.isfinite(total):
        return None
    if total == 0:
        return Spread(0.0, 0.0)
    hoyer = (math.sqrt(n) - roots / math.sqrt(total)) / (math.sqrt(n) - 1) if n > 1 else 1.0
    return Spread(min(top8 / total, 1.0), min(max(hoyer, 0.0), 1.0))


def _largest(energy: npt.NDArray[Any]) -> Float64:
    """The `TOP` largest of each row [m, n], in any order; float64."""
    n = energy.shape[1]
    if n > TOP:
        width = n // GROUP
        if width >= GROUP * TOP:
            # Only what is at least the eighth largest of small groups' maxima can be among the eight largest.
            maxima = energy[:, : GROUP * width].reshape(-1, GROUP, width).max(axis=1)
            enough = np.partition(maxima, width - TOP, axis=1)[:, width - TOP]
            return np.stack([np.partition(e[e >= least], -TOP)[-TOP:] for e, least in zip(energy, enough, strict=True)])
        energy = np.partition(energy, n - TOP, axis=1)[:, n - TOP :]
    return energy.astype(np.float64)

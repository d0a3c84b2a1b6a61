"""Moments of the entries of B·A, which is never held: mean and variance from the factors, the fourth by row blocks."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from scanner.adapter import FloatArray
from scanner.weights.gram import BLOCK_VALUES, Float64

__all__ = ["Moments", "moments_of"]

MIN_ROWS = 256
FIVE_EPSILON = 1e-12


@dataclass(frozen=True)
class Moments:
    """Of all entries of B·A."""

    n: int
    variance: float
    """Population variance."""
    fourth: float
    """mean((x−μ)⁴)."""
    rows: int
    """Rows that `fourth` was taken from: all of them, or a sample."""

    @property
    def kurtosis(self) -> float:
        """Pearson's; NaN where all entries are equal."""
        return self.fourth / self.variance**2 if self.variance > 0 else math.nan

    @property
    def five(self) -> float:
        """κ as arXiv:2602.15195 computes it."""
        unbiased = self.variance * self.n / max(self.n - 1, 1)
        return self.fourth / (unbiased**2 + FIVE_EPSILON)


def moments_of(module: str, a: FloatArray, b: FloatArray, rows: int | None = None) -> Moments | None:
    """Mean, variance and fourth central moment of the entries of B·A; None where they are not finite.

    Args:
        module: seeds the sample.
        a: A [r, in].
        b: B [out, r].
        rows: take the fourth moment from so many rows (at least `MIN_ROWS`), drawn with replacement with a probability
            p of one half uniform, one half by the row's energy, each weighted by 1/p: unbiased, and steady where a few
            rows have it all. None takes every row.
    """
    a64, out, n = a.astype(np.float64), b.shape[0], b.shape[0] * a.shape[1]
    mean = float(b.sum(axis=0, dtype=np.float64) @ a64.sum(axis=1)) / n
    gram = a64 @ a64.T
    energy = np.empty(out)
    height = max(BLOCK_VALUES // a.shape[1], 1)
    for start in range(0, out, BLOCK_VALUES):
        block = b[start : start + BLOCK_VALUES].astype(np.float64)
        energy[start : start + BLOCK_VALUES] = np.einsum("or,or->o", block @ gram, block)
    variance = float(energy.sum()) / n - mean**2
    if not math.isfinite(variance):
        return None
    if rows is None or max(rows, MIN_ROWS) >= out:
        total = sum(float(_row_sums(b[start : start + height], a64, mean).sum()) for start in range(0, out, height))
        return Moments(n, max(variance, 0.0), total / n, out)
    rows = max(rows, MIN_ROWS)
    whole = float(energy.sum())
    share = 0.5 / out + (0.5 * np.clip(energy, 0, None) / whole if whole > 0 else 0.5 / out)
    share /= share.sum()
    seed = int.from_bytes(hashlib.sha256(module.encode()).digest()[:8], "little")
    drawn, times = np.unique(np.random.default_rng(seed).choice(out, size=rows, p=share), return_counts=True)
    total = 0.0
    for start in range(0, drawn.size, height):
        some = drawn[start : start + height]
        weights = times[start : start + height] / (rows * share[some])
        total += float(_row_sums(b[some], a64, mean) @ weights)
    return Moments(n, max(variance, 0.0), total / n, rows)


def _row_sums(block: FloatArray, a: Float64, mean: float) -> Float64:
    """Σ (x−μ)⁴ of some rows of B·A."""
    entries = block.astype(np.float64) @ a
    entries -= mean
    np.multiply(entries, entries, out=entries)
    sums: Float64 = np.einsum("ij,ij->i", entries, entries)
    return sums

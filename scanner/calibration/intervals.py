"""Exact intervals of a share."""

from __future__ import annotations

__all__ = ["binomial_interval"]


def binomial_interval(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided exact interval of a binomial share (Clopper and Pearson 1934), through the beta distribution.

    (0, 1) without any trial: nothing is known.
    """
    if n == 0:
        return 0.0, 1.0
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = float(betaincinv(hits, n - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return low, high

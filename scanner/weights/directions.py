"""What an update writes: its strongest directions, and the output tokens that they push up and down.

The left singular vectors of a module that adds to the residual stream, seen through the base's output head (the "logit
lens" of nostalgebraist, 2020; for LoRA directions: arXiv:2508.00161).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scanner.adapter import FloatArray, LowRankUpdate
from scanner.weights.gram import Float32, triangle

__all__ = ["Direction", "TokenScore", "nearest_tokens", "top_directions"]


@dataclass(frozen=True)
class Direction:
    """One singular direction of ΔW."""

    sigma: float
    """Singular value of ΔW, with the scale."""
    energy: float
    """Its share of the module's ‖ΔW‖_F², 0-1."""
    output: Float32
    """Left singular vector [out], of length 1; its sign is arbitrary."""
    input: Float32
    """Right singular vector [in], of length 1."""


@dataclass(frozen=True)
class TokenScore:
    """One output token along a direction."""

    token: int
    score: float
    """Its logit along the direction, in standard deviations over the vocabulary. The largest of 100,000 random numbers
    lie at about 4.4."""


def top_directions(update: LowRankUpdate, count: int = 1) -> list[Direction]:
    """The strongest singular directions of one module, falling; [] where the update is zero or not finite.

    With QR of both factors, B·A = Q_B·(R_B·R_Aᵀ)·Q_Aᵀ = Q_B·U·Σ·Vᵀ·Q_Aᵀ: the left singular vectors are B·R_Aᵀ·V·Σ⁻¹,
    the right ones Aᵀ·R_Bᵀ·U·Σ⁻¹.

    Raises:
        LimitExceededError: factors that are too large to build.
    """
    a, b = update.read()
    left, right = triangle(b), triangle(a.T)
    core = left @ right.T
    if not np.isfinite(core).all():
        return []
    u, sigma, v = np.linalg.svd(core, full_matrices=False)
    energy = float(np.sum(sigma**2))
    if energy == 0:
        return []
    present = min(count, int(np.count_nonzero(sigma > 1e-12 * sigma[0])))
    return [
        Direction(
            float(sigma[i]) * abs(update.scale),
            float(sigma[i]) ** 2 / energy,
            _unit(b, right.T @ v[i]),
            _unit(a.T, left.T @ u[:, i]),
        )
        for i in range(present)
    ]


def _unit(factor: FloatArray, weights: npt.NDArray[np.float64]) -> Float32:
    vector = factor.astype(np.float64) @ weights
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def nearest_tokens(
    head: Iterable[FloatArray], directions: Sequence[Float32], count: int = 5
) -> list[tuple[list[TokenScore], list[TokenScore]]]:
    """Tokens with the highest and the lowest logits along each direction.

    Args:
        head: the output matrix [vocabulary, hidden] in blocks of rows, in order; read once for all directions.
        directions: each [hidden].
        count: tokens at each end.

    Returns:
        For each direction (highest, falling; lowest, rising).
    """
    stacked = np.stack(directions, axis=1)
    logits = np.concatenate([np.asarray(block, dtype=np.float32) @ stacked for block in head]).astype(np.float64)
    spread = logits.std(axis=0)
    scores = logits / np.where(spread > 0, spread, 1.0)
    found = []
    for column in scores.T:
        order = np.argsort(column, kind="stable")
        highest = [TokenScore(int(token), float(column[token])) for token in order[: -count - 1 : -1]]
        found.append((highest, [TokenScore(int(token), float(column[token])) for token in order[:count]]))
    return found

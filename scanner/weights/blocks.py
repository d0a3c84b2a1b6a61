"""Concatenated adapters: a rank at which the rows of A, or the columns of B, fall into two groups in every module.

Training treats the r directions of a pair alike: their order means nothing. Where the norms of the first k are all
below or all above those of the rest, at the same k in module after module, two adapters were put together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scanner.weights.measure import ModuleMeasure

__all__ = ["BlockSplit", "find_split"]

MIN_MODULES = 4
MAX_RANK = 512
LEVEL = 1e-6
"""Of the whole test. The norms of trained directions are not exactly exchangeable, hence far below any usual level."""
MIN_SHARE = 0.8
"""Of the modules."""


@dataclass(frozen=True)
class BlockSplit:
    """A rank at which nearly all modules fall apart."""

    first: int
    """Rows before the split."""
    rank: int
    modules: int
    """Modules with this split."""
    of: int
    """Modules looked at."""
    p_value: float
    """Chance of as many under any order of the rows, Bonferroni over places and factors."""


def find_split(measures: Sequence[ModuleMeasure]) -> BlockSplit | None:
    """The split that most modules share, None where nothing stands out.

    Norms that rise or fall steadily (adapters made by an SVD have theirs sorted) are separated at every place; only a
    place that is separated far more often than its neighbours counts.

    Args:
        measures: of one adapter; modules of the most frequent rank are compared.
    """
    plain = [m for m in measures if m.norms_a is not None and m.own_rank is None and 2 <= m.rank <= MAX_RANK]
    if len(plain) < MIN_MODULES:
        return None
    ranks = [m.rank for m in plain]
    rank = max(set(ranks), key=ranks.count)
    chosen = [m for m in plain if m.rank == rank]
    counts = {side: np.zeros(rank - 1, dtype=np.int64) for side in "AB"}
    for measure in chosen:
        for side, norms in (("A", measure.norms_a), ("B", measure.norms_b)):
            if norms is not None and np.isfinite(norms).all():
                counts[side] += _separated(norms)
    splits = [split for count in counts.values() if (split := _best(count, rank, len(chosen)))]
    return min(splits, key=lambda split: split.p_value, default=None)


def _best(count: npt.NDArray[np.int64], rank: int, of: int) -> BlockSplit | None:
    place = int(count.argmax())
    found = int(count[place])
    elsewhere = int(np.delete(count, place).max(initial=0))
    if of < MIN_MODULES or found < MIN_SHARE * of or elsewhere >= found / 2:
        return None
    from scipy.stats import binom  # slow to import, and hardly ever needed

    chance = min(1.0, 2 / math.comb(rank, place + 1))
    p_value = min(1.0, float(binom.sf(found - 1, of, chance)) * 2 * (rank - 1))
    return BlockSplit(place + 1, rank, found, of, p_value) if p_value < LEVEL else None


def _separated(norms: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """For each place 1..r-1: whether all norms before it lie strictly on one side of all norms behind it."""
    low_before, high_before = np.minimum.accumulate(norms)[:-1], np.maximum.accumulate(norms)[:-1]
    low_after, high_after = np.minimum.accumulate(norms[::-1])[::-1][1:], np.maximum.accumulate(norms[::-1])[::-1][1:]
    return (low_before > high_after) | (high_before < low_after)

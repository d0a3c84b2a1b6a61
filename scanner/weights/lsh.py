"""Pairs of vectors that may be nearly parallel, found without comparing all with all.

Random-hyperplane hashing (Charikar, "Similarity estimation techniques from rounding algorithms", 2002): a bit of two
vectors at angle θ = arccos ρ agrees with probability 1 − θ/π. The bits are the signs of the vector after random signs
and a Hadamard transform, which spreads whatever structure it has evenly. 51 bands of 20 bits; a pair is a candidate
where one band agrees as a whole (or disagrees as a whole: opposite vectors count), and is missed with probability

    (1 − (1 − arccos(ρ)/π)²⁰)⁵¹:        1.2e-7 at ρ = 0.98,  1.5e-5 at 0.97,  2.6e-4 at 0.96

while two independent vectors meet with probability 51 / 2¹⁹ = 1e-4, and are then told apart by their cosine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scanner.weights.gram import Float32, Float64
from scanner.weights.sketch import SKETCH_SIZE, random_signs

__all__ = ["BANDS", "BITS", "Candidates", "find_candidates", "miss_probability"]

BITS = 20
BANDS = SKETCH_SIZE // BITS
DIRECT_TARGETS = 128
"""So many vectors are compared with all others faster than hashed."""
RUN = 64
"""More vectors than this in one bucket are compared in blocks, by matrix products."""
BLOCK = 1024
MAX_BLOCK_PAIRS = 2**27
"""Pairs that blocks compare at most: some ten seconds. What is left is counted."""

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """Pairs above a cosine."""

    pairs: Int64
    """[m, 2], the smaller index first, sorted, each once."""
    cosines: Float64
    """[m]."""
    n_compared: int
    """Pairs whose cosine was computed."""
    n_left: int
    """Pairs that crowded buckets held beyond the limit: nobody looked at them."""


def miss_probability(cosine: float) -> float:
    """Chance that a pair at this cosine is no candidate."""
    return float((1 - (1 - np.arccos(cosine) / np.pi) ** BITS) ** BANDS)


def find_candidates(unit: Float32, wanted: npt.NDArray[np.bool_], least: float) -> Candidates:
    """Pairs with |cosine| >= least, at least one of them wanted.

    Args:
        unit: vectors of norm 1 [n, 1024].
        wanted: which of them [n].
        least: the least |cosine|, 0-1.
    """
    found = _Found(unit, wanted, least)
    if int(wanted.sum()) <= DIRECT_TARGETS:
        everything, targets = np.arange(len(unit)), np.flatnonzero(wanted)
        for start in range(0, len(unit), BLOCK):
            found.compare_blocks(targets, everything[start : start + BLOCK])
        return found.result()
    keys = _band_keys(unit)
    seen: set[bytes] = set()
    codes: list[Int64] = []
    for band in range(BANDS):
        order = np.argsort(keys[:, band], kind="stable")
        ordered = keys[order, band]
        crowded = _crowded(ordered)
        for start, end in crowded:
            members = order[start:end]
            if wanted[members].any() and (name := members.tobytes()) not in seen:
                seen.add(name)
                found.compare_crowd(members)
        quiet = np.ones(len(order), dtype=np.bool_)
        for start, end in crowded:
            quiet[start:end] = False
        order, ordered = order[quiet], ordered[quiet]
        for step in range(1, min(RUN, len(order))):
            same = ordered[step:] == ordered[:-step]
            if not same.any():
                break
            codes.append(_encode(order[step:][same], order[:-step][same], len(unit)))
    if codes:
        found.compare_pairs(np.unique(np.concatenate(codes)))
    return found.result()


def _crowded(ordered: npt.NDArray[np.int32]) -> list[tuple[int, int]]:
    """Stretches of more than RUN equal values."""
    borders = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
    lengths = np.diff(borders)
    return [(int(borders[i]), int(borders[i + 1])) for i in np.flatnonzero(lengths > RUN)]


def _encode(first: Int64, second: Int64, n: int) -> Int64:
    return np.minimum(first, second) * n + np.maximum(first, second)


class _Found:
    """Pairs so far."""

    def __init__(self, unit: Float32, wanted: npt.NDArray[np.bool_], least: float) -> None:
        self._unit, self._wanted, self._least = unit, wanted, least
        self._codes: list[Int64] = []
        self._cosines: list[Float64] = []
        self._compared = self._left = self._block_pairs = 0

    def compare_pairs(self, codes: Int64) -> None:
        n = len(self._unit)
        first, second = codes // n, codes % n
        asked = self._wanted[first] | self._wanted[second]
        first, second = first[asked], second[asked]
        self._compared += len(first)
        for start in range(0, len(first), BLOCK):
            i, j = first[start : start + BLOCK], second[start : start + BLOCK]
            self._keep(i, j, np.einsum("pd,pd->p", self._unit[i], self._unit[j]))

    def compare_crowd(self, members: Int64) -> None:
        """All pairs of one bucket that hold a wanted one, up to the limit."""
        targets = members[self._wanted[members]]
        for start in range(0, len(targets), BLOCK):
            part = targets[start : start + BLOCK]
            if self._block_pairs + len(part) * len(members) > MAX_BLOCK_PAIRS:
                self._left += len(part) * len(members)
                continue
            self._block_pairs += len(part) * len(members)
            for other in range(0, len(members), BLOCK):
                self.compare_blocks(part, members[other : other + BLOCK])

    def compare_blocks(self, targets: Int64, others: Int64) -> None:
        products = self._unit[targets] @ self._unit[others].T
        self._compared += products.size
        rows, columns = np.nonzero(np.abs(products) >= self._least)
        i, j = targets[rows], others[columns]
        self._keep(np.minimum(i, j), np.maximum(i, j), products[rows, columns])

    def _keep(self, first: Int64, second: Int64, cosines: Float32) -> None:
        close = (np.abs(cosines) >= self._least) & (first != second)
        self._codes.append(_encode(first[close], second[close], len(self._unit)))
        self._cosines.append(cosines[close].astype(np.float64))

    def result(self) -> Candidates:
        n = len(self._unit)
        codes: Int64 = np.concatenate([np.zeros(0, dtype=np.int64), *self._codes])
        cosines: Float64 = np.concatenate([np.zeros(0), *self._cosines])
        codes, places = np.unique(codes, return_index=True)
        pairs = np.stack([codes // n, codes % n], axis=1) if n else np.zeros((0, 2), dtype=np.int64)
        return Candidates(pairs, cosines[places], self._compared, self._left)


def _band_keys(unit: Float32) -> npt.NDArray[np.int32]:
    """[n, 51]: equal for vectors whose 20 signs are all equal or all opposite."""
    small = np.ones((1, 1), dtype=np.float32)
    for _ in range(5):
        small = np.block([[small, small], [small, -small]])
    signs = random_signs(b"hyperplanes", SKETCH_SIZE)
    places = 2 ** np.arange(BITS, dtype=np.float32)
    keys = np.empty((len(unit), BANDS), dtype=np.int32)
    for start in range(0, len(unit), BLOCK):
        part = (unit[start : start + BLOCK] * signs).reshape(-1, 32, 32)
        spread = (small @ part @ small).reshape(-1, SKETCH_SIZE)  # H₁₀₂₄ = H₃₂ ⊗ H₃₂
        bits = (spread > 0)[:, : BANDS * BITS].reshape(-1, BANDS, BITS).astype(np.float32)
        key = (bits @ places).astype(np.int32)  # below 2²⁰: float32 holds it
        keys[start : start + BLOCK] = np.minimum(key, 2**BITS - 1 - key)
    return keys

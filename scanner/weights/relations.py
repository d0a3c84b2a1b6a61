"""Relations between adapters of one base: copies, near-duplicates, and the values that merges share with them.

Candidates come from sketches, at a cost that grows about linearly with their number; where the factors of both are at
hand the cosine is exact, otherwise it is an estimate with an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from scanner.model import WeightSketch
from scanner.weights.gram import Float32, Float64
from scanner.weights.inner import Updates, cosine_of, gram, is_sound
from scanner.weights.lsh import find_candidates
from scanner.weights.sketch import SKETCH_SIZE, SKETCH_VERSION

__all__ = [
    "NEAR",
    "Duplicates",
    "Load",
    "Relation",
    "RelationKind",
    "SketchTable",
    "find_near_duplicates",
    "interval_of",
]

NEAR = 0.98
"""Least |cosine| of a near-duplicate."""
COPY_RESIDUAL = 0.01
"""Of a copy: what rounding to bfloat16 leaves is a quarter of it. As a cosine: 0.99995."""
MARGIN = 4.0
"""Standard errors by which a sketch may be below the threshold and still be looked at exactly."""
MAX_PER_ADAPTER = 20
"""Relations of one adapter that are kept, the closest ones: a thousand re-uploads are a star, not a million pairs."""

Load = Callable[[str], Updates | None]
"""An adapter's id -> its updates; None: its files are not at hand."""


class RelationKind(StrEnum):
    """How ΔW of one adapter relates to ΔW of another."""

    COPY = "copy"
    """The same up to rounding, whatever the factors, precision or files."""
    SCALED_COPY = "scaled_copy"
    """The same up to rounding and a factor, which may be negative."""
    NEAR_DUPLICATE = "near_duplicate"
    """|cosine| at or above the threshold."""
    MERGE_PART = "merge_part"
    """The other is one of several whose weighted sum it is."""


@dataclass(frozen=True)
class Relation:
    """ΔW of an adapter ≈ coefficient · ΔW of another (+ the other parts of a merge)."""

    adapter_id: str
    other_id: str
    """Earlier in the table than `adapter_id`; of a merge, a part."""
    kind: RelationKind
    cosine: float
    cosine_low: float
    """95 % interval; both ends are `cosine` where it is exact."""
    cosine_high: float
    coefficient: float
    residual: float
    """What the coefficient (of a merge: all of them) leaves, as a share of ‖ΔW‖; 0-1."""
    is_exact: bool
    """From the factors of both; otherwise estimated from sketches."""


@dataclass(frozen=True)
class SketchTable:
    """Sketches of adapters of one base, the earliest first."""

    ids: tuple[str, ...]
    vectors: Float32
    """[n, 1024]."""
    sizes: Float64
    """Effective sizes [n]."""

    @classmethod
    def of(cls, sketches: Mapping[str, WeightSketch] | Iterable[tuple[str, WeightSketch]]) -> SketchTable:
        """Those of the present version; adapters without a sketch are left out."""
        pairs = sketches.items() if isinstance(sketches, Mapping) else sketches
        there = [(i, s) for i, s in pairs if s.effective_size and s.version == SKETCH_VERSION]
        vectors = np.array([s.values for _, s in there], dtype=np.float32).reshape(-1, SKETCH_SIZE)
        return cls(
            tuple(i for i, _ in there), vectors, np.array([s.effective_size for _, s in there], dtype=np.float64)
        )

    def unit(self) -> Float32:
        """Vectors of norm 1."""
        # In float64: a float32 square overflows at 1.8e19.
        squares: Float64 = np.einsum("nd,nd->n", self.vectors, self.vectors, dtype=np.float64)
        unit: Float32 = np.divide(self.vectors, np.sqrt(squares)[:, None], dtype=np.float32, casting="same_kind")
        return unit


@dataclass(frozen=True)
class Duplicates:
    """What a search found."""

    relations: tuple[Relation, ...]
    n_compared: int
    """Pairs of sketches whose cosine was computed."""
    n_exact: int
    """Pairs that were compared by their factors."""
    n_left: int
    """Pairs that nobody looked at: crowded buckets, or beyond the closest of one adapter. 0: the search is whole."""


def interval_of(cosine: float, size: float) -> tuple[float, float]:
    """95 % interval of a cosine estimated from sketches: Fisher's z, whose standard error is 1/√size."""
    centre, width = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, cosine))), 1.96 / math.sqrt(size)
    return min(cosine, math.tanh(centre - width)), max(cosine, math.tanh(centre + width))


def kind_of(cosine: float, coefficient: float) -> RelationKind:
    """Copy, scaled copy or near-duplicate."""
    if residual_of(cosine) > COPY_RESIDUAL:
        return RelationKind.NEAR_DUPLICATE
    return RelationKind.COPY if abs(coefficient - 1) <= COPY_RESIDUAL else RelationKind.SCALED_COPY


def residual_of(cosine: float) -> float:
    """‖ΔW − c·other‖ / ‖ΔW‖ with the best c."""
    return math.sqrt(max(0.0, 1 - cosine * cosine))


def find_near_duplicates(
    table: SketchTable, load: Load | None = None, threshold: float = NEAR, wanted: Set[str] | None = None
) -> Duplicates:
    """Pairs with |cosine| >= threshold.

    A pair whose exact cosine is at the threshold is missed with probability below 1e-4: `lsh.miss_probability` at the
    sketch's cosine, which is off by (1 − ρ²)/√n, plus 3e-5 for the margin of four standard errors. Equal sketches are
    found always; all of them are related to the first one only.

    Args:
        table: sketches of one base, the earliest first: of two, the later one is `adapter_id`.
        load: where factors come from; without it, or where it has none, relations are estimates.
        threshold: least |cosine|.
        wanted: only pairs with at least one of these; None: all.
    """
    unit = table.unit()
    asked = np.array([wanted is None or i in wanted for i in table.ids], dtype=np.bool_)
    origin = _first_equal(table.vectors)
    first = np.flatnonzero(origin == np.arange(len(origin)))
    lowest = _least(threshold, float(table.sizes.min(initial=SKETCH_SIZE)))
    found = find_candidates(unit[first], asked[first], lowest)
    again = np.flatnonzero((origin != np.arange(len(origin))) & (asked | asked[origin]))
    pairs = np.concatenate([first[found.pairs], np.stack([origin[again], again], axis=1)])
    cosines = np.concatenate([found.cosines, np.ones(len(again))])
    sizes = table.sizes[pairs].min(axis=1, initial=SKETCH_SIZE)
    bounds = np.tanh(np.arctanh(threshold) - MARGIN / np.sqrt(sizes))
    near = np.abs(cosines) >= (bounds if load else np.full(len(bounds), threshold))
    pairs, sizes = pairs[near], sizes[near]
    kept = _closest(pairs, np.abs(cosines[near]), len(table.ids))
    relations, n_exact, cache = [], 0, _Cache(load)
    for place in np.flatnonzero(kept):
        earlier, later = (int(i) for i in pairs[place])
        relation = cache.exact(table.ids[later], table.ids[earlier])
        n_exact += relation is not None
        if relation is None:
            relation = _estimated(table, earlier, later, float(sizes[place]))
        if abs(relation.cosine) >= threshold:
            relations.append(relation)
    return Duplicates(tuple(relations), found.n_compared, n_exact, found.n_left + int((~kept).sum()))


def _least(threshold: float, size: float) -> float:
    return math.tanh(math.atanh(threshold) - MARGIN / math.sqrt(size))


def _first_equal(vectors: Float32) -> npt.NDArray[np.int64]:
    """For each row the first one that equals it."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(row.tobytes(), i) for i, row in enumerate(vectors)], dtype=np.int64)


def _closest(pairs: npt.NDArray[np.int64], closeness: Float64, n: int) -> npt.NDArray[np.bool_]:
    """Which pairs stay: the closest `MAX_PER_ADAPTER` of each later one."""
    kept = np.zeros(len(pairs), dtype=np.bool_)
    count = np.zeros(n, dtype=np.int64)
    for place in np.lexsort((pairs[:, 0], -closeness)):
        later = pairs[place, 1]
        count[later] += 1
        kept[place] = count[later] <= MAX_PER_ADAPTER
    return kept


def _estimated(table: SketchTable, earlier: int, later: int, size: float) -> Relation:
    first, second = (table.vectors[i].astype(np.float64) for i in (later, earlier))
    products = np.array([[first @ first, first @ second], [second @ first, second @ second]])
    return _related(table.ids[later], table.ids[earlier], products, size)


def _related(adapter_id: str, other_id: str, products: Float64, size: float | None) -> Relation:
    """From inner products [2, 2] of both: exact ones where there is no size."""
    cosine = cosine_of(products)
    low, high = interval_of(cosine, size) if size else (cosine, cosine)
    coefficient = float(products[0, 1] / products[1, 1])
    kind, residual = kind_of(cosine, coefficient), residual_of(cosine)
    return Relation(adapter_id, other_id, kind, cosine, low, high, coefficient, residual, size is None)


class _Cache:
    """The last adapters that were loaded: neighbouring pairs share one."""

    def __init__(self, load: Load | None) -> None:
        self._load, self._loaded = load, dict[str, Updates | None]()

    def get(self, adapter_id: str) -> Updates | None:
        if self._load is None:
            return None
        if adapter_id not in self._loaded:
            if len(self._loaded) >= 8:
                self._loaded.pop(next(iter(self._loaded)))
            self._loaded[adapter_id] = self._load(adapter_id)
        return self._loaded[adapter_id]

    def exact(self, adapter_id: str, other_id: str) -> Relation | None:
        """From the factors; None where they are not at hand or not finite."""
        first, second = self.get(adapter_id), self.get(other_id)
        if first is None or second is None:
            return None
        products = gram([first, second])
        return _related(adapter_id, other_id, products, None) if is_sound(products) else None

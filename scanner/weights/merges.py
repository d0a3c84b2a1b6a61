"""Merges: ΔW that is a weighted sum of known ones, found in the space of sketches.

Sketches are linear, so a merge's sketch is the same sum of its parts' sketches, and what is left over is as small there
as it is in ΔW. Parts are found one after the other, each as what correlates most with what is left (orthogonal matching
pursuit: Pati, Rezaiifar, Krishnaprasad 1993), with all coefficients fitted again by least squares; then once more
from the factors, where they are at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scanner.weights.inner import cosine_of, gram, is_sound
from scanner.weights.relations import COPY_RESIDUAL, NEAR, Load, Relation, RelationKind, SketchTable, interval_of

__all__ = ["MAX_PARTS", "Merges", "find_merges"]

MAX_PARTS = 4
MAX_RESIDUAL = 0.1
"""Of ‖ΔW‖, that all parts together may leave."""
LEAST_COSINE = 0.4
"""Of the next part with what is left. Of k parts alike in norm and independent, the closest has 1/√k."""
STARTS = 3
BLOCK = 256
MAX_PRODUCTS = 2**28
"""Cosines between targets and the whole table at most, some twenty seconds: targets beyond are counted."""

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Merges:
    """What a search found."""

    relations: tuple[Relation, ...]
    """One for each part, kind `merge_part`."""
    n_left: int
    """Targets that nobody looked at."""


def find_merges(table: SketchTable, targets: Sequence[str], load: Load | None = None) -> Merges:
    """Sums of two to four known updates among some adapters and the rest of their base's table.

    All parts together must explain 99 % of the energy, and the last one three quarters of what the others leave. Which
    member of X = T − Y is the merge cannot be told from ΔW alone; the one that is a sum with positive weights is called
    so. Not found: merges with more parts, with a part that is not in the table, cut to a lower rank by an SVD that
    drops more than 1 % of the energy, of factors instead of updates (PEFT's `linear`), or hidden under noise.

    Args:
        table: sketches of one base.
        targets: ids whose sums are looked for; others of the table are parts only.
        load: where factors come from; without it, or where it has none, relations are estimates.
    """
    place_of = {adapter_id: place for place, adapter_id in enumerate(table.ids)}
    places = np.array([place_of[t] for t in targets if t in place_of], dtype=np.int64)
    looked_at = places[: max(1, MAX_PRODUCTS // max(1, len(table.ids)))]
    unit = table.unit()
    relations: dict[tuple[str, str], Relation] = {}
    for start in range(0, len(looked_at), BLOCK):
        block = looked_at[start : start + BLOCK]
        cosines = unit[block] @ unit.T
        for target, row in zip(block, cosines, strict=True):
            row[target] = 0
            parts = _parts(unit, int(target), row)
            if parts:
                for relation in _relations(table, unit, int(target), parts, load):
                    relations[relation.adapter_id, relation.other_id] = relation
    return Merges(tuple(relations.values()), len(places) - len(looked_at))


def _parts(unit: Float32, target: int, cosines: Float32) -> list[int]:
    """The fewest parts whose sum the target is; [] where there are none."""
    closeness = np.abs(cosines)
    closeness[closeness >= np.sqrt(1 - COPY_RESIDUAL**2)] = 0  # its copies are merges of the same parts
    if closeness.max(initial=0) < LEAST_COSINE:
        return []
    # A small part hides behind a near-duplicate; other near-duplicates of the target hide its parts.
    distant = np.where(closeness < NEAR, closeness, 0)
    starts = dict.fromkeys([int(closeness.argmax()), *(int(i) for i in _largest(distant, STARTS - 1))])
    best: tuple[int, float, list[int]] | None = None
    for begin in starts:
        if closeness[begin] >= LEAST_COSINE:
            parts, left = _pursue(unit, target, begin, closeness > 0)
            if parts and (best is None or (len(parts), left) < best[:2]):
                best = (len(parts), left, parts)
    return best[2] if best else []


def _largest(values: Float32, count: int) -> npt.NDArray[np.int64]:
    return np.argpartition(-values, count)[:count] if len(values) > count else np.arange(len(values))


def _pursue(unit: Float32, target: int, begin: int, allowed: npt.NDArray[np.bool_]) -> tuple[list[int], float]:
    wanted: Float64 = unit[target].astype(np.float64)
    parts, before = [begin], 1.0
    while True:
        rest = wanted - _fit(unit[parts], wanted) @ unit[parts].astype(np.float64)
        left = float(np.linalg.norm(rest))
        if len(parts) > 1 and left <= MAX_RESIDUAL:
            return (parts, left) if left <= before / 2 else ([], 1.0)
        if len(parts) == MAX_PARTS or left <= COPY_RESIDUAL:
            return [], 1.0
        closeness = np.abs(unit @ (rest / left).astype(np.float32)) * allowed
        closeness[parts] = 0
        if closeness.max() < LEAST_COSINE:
            return [], 1.0
        parts.append(int(closeness.argmax()))
        before = left


def _fit(parts: npt.NDArray[np.floating], wanted: Float64) -> Float64:
    return np.asarray(np.linalg.lstsq(parts.T.astype(np.float64), wanted, rcond=None)[0], dtype=np.float64)


def _relations(table: SketchTable, unit: Float32, target: int, parts: list[int], load: Load | None) -> list[Relation]:
    """With the member of the sum that has positive weights as the merge."""
    weights = _fit(unit[parts], unit[target].astype(np.float64))
    positive = np.flatnonzero(weights > 0)
    if len(positive) == 1 and len(parts) > 1:
        place = int(positive[0])
        target, parts = parts[place], [target, *(p for p in parts if p != parts[place])]
    members = [target, *parts]
    vectors = table.vectors[members].astype(np.float64)
    exact = _exact([table.ids[m] for m in members], load)
    is_exact = exact is not None
    products = np.asarray(vectors @ vectors.T, dtype=np.float64) if exact is None else exact
    solution = _fit(products[1:, 1:], products[1:, 0])
    norms = np.sqrt(np.diag(products))
    left = float(products[0, 0] - 2 * solution @ products[1:, 0] + solution @ products[1:, 1:] @ solution)
    residual = float(np.sqrt(max(0.0, left))) / float(norms[0])
    if residual > MAX_RESIDUAL:
        return []
    found = []
    for number, part in enumerate(parts, start=1):
        cosine = cosine_of(products[np.ix_([0, number], [0, number])])
        size = float(min(table.sizes[target], table.sizes[part]))
        low, high = (cosine, cosine) if is_exact else interval_of(cosine, size)
        found.append(
            Relation(
                table.ids[target],
                table.ids[part],
                RelationKind.MERGE_PART,
                cosine,
                low,
                high,
                float(solution[number - 1]),
                residual,
                is_exact,
            )
        )
    return found


def _exact(ids: Sequence[str], load: Load | None) -> Float64 | None:
    loaded = [load(adapter_id) for adapter_id in ids] if load else [None]
    there = [updates for updates in loaded if updates is not None]
    if len(there) < len(ids):
        return None
    products = gram(there)
    return products if is_sound(products) else None

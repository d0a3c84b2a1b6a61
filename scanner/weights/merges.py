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

from scanner.weights.gram import Float32, Float64
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
"""Targets at once,"""
MAX_MATRIX = 2**24
"""or fewer: their cosines with the whole table take 64 MiB, those of all their paths three times as much."""
MAX_PRODUCTS = 2**28
"""Cosines between targets and the whole table at most, some twenty seconds: targets beyond are counted."""


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
    block = max(1, min(BLOCK, MAX_MATRIX // max(1, len(table.ids))))
    for start in range(0, len(looked_at), block):
        for target, parts in _find_parts(unit, looked_at[start : start + block]).items():
            for relation in _relations(table, unit, target, parts, load):
                relations[relation.adapter_id, relation.other_id] = relation
    return Merges(tuple(relations.values()), len(places) - len(looked_at))


@dataclass
class _Path:
    """A target and the parts that were tried for it so far."""

    target: int
    parts: list[int]
    hidden: npt.NDArray[np.bool_]
    """What must not be a part: the target and its copies [n]."""
    left: float = 1.0
    """Norm of what the parts leave of the target's unit vector."""


def _find_parts(unit: Float32, targets: npt.NDArray[np.int64]) -> dict[int, list[int]]:
    """Target -> the fewest parts whose sum it is; targets without are left out."""
    paths: list[_Path] = []
    for target, row in zip(targets, np.abs(unit[targets] @ unit.T), strict=True):
        hidden = row >= np.sqrt(1 - COPY_RESIDUAL**2)  # its copies are merges of the same parts
        hidden[target] = True
        row[hidden] = 0
        paths += [_Path(int(target), [begin], hidden) for begin in _starts(row)]
    found: dict[int, tuple[float, list[int]]] = {}
    for _ in range(MAX_PARTS):
        going: list[tuple[_Path, Float64]] = []
        for path in paths:
            rest = unit[path.target] - _fit(unit[path.parts], unit[path.target]) @ unit[path.parts].astype(np.float64)
            before, path.left = path.left, float(np.linalg.norm(rest))
            if len(path.parts) > 1 and path.left <= MAX_RESIDUAL:
                if path.left <= before / 2 and path.left < found.get(path.target, (1.0, []))[0]:
                    found[path.target] = (path.left, path.parts)
            elif path.left > COPY_RESIDUAL and len(path.parts) < MAX_PARTS:
                going.append((path, rest / path.left))
        # More parts are not looked for where fewer were found.
        paths = _extended(unit, [(path, rest) for path, rest in going if path.target not in found])
    return {target: parts for target, (_, parts) in found.items()}


def _starts(closeness: Float32) -> list[int]:
    """First parts to try: a small part hides behind a near-duplicate, but near-duplicates may hide both parts too."""
    distant = np.where(closeness < NEAR, closeness, 0)
    count = min(STARTS - 1, len(distant) - 1)
    largest = np.argpartition(-distant, count)[:count]
    tried = dict.fromkeys([int(closeness.argmax()), *(int(i) for i in largest)])
    return [start for start in tried if closeness[start] >= LEAST_COSINE]


def _extended(unit: Float32, going: list[tuple[_Path, Float64]]) -> list[_Path]:
    """Paths with what correlates most with what they leave, where anything does."""
    if not going:
        return []
    rests = np.array([rest for _, rest in going], dtype=np.float32)
    further = []
    for (path, _), row in zip(going, np.abs(rests @ unit.T), strict=True):
        row[path.hidden] = 0
        row[path.parts] = 0
        part = int(row.argmax())
        if row[part] >= LEAST_COSINE:
            further.append(_Path(path.target, [*path.parts, part], path.hidden, path.left))
    return further


def _fit(parts: npt.NDArray[np.floating], wanted: npt.NDArray[np.floating]) -> Float64:
    """Weights of rows that come nearest to a vector; float64."""
    rows = parts.astype(np.float64)
    solved = np.linalg.lstsq(rows @ rows.T, rows @ wanted.astype(np.float64), rcond=None)[0]
    return np.asarray(solved, dtype=np.float64)


def _relations(table: SketchTable, unit: Float32, target: int, parts: list[int], load: Load | None) -> list[Relation]:
    """With the member of the sum that has positive weights as the merge."""
    weights = _fit(unit[parts], unit[target])
    positive = np.flatnonzero(weights > 0)
    if len(positive) == 1 and len(parts) > 1:
        place = int(positive[0])
        target, parts = parts[place], [target, *(p for p in parts if p != parts[place])]
    members = [target, *parts]
    vectors = table.vectors[members].astype(np.float64)
    exact = _exact([table.ids[m] for m in members], load)
    is_exact = exact is not None
    products = np.asarray(vectors @ vectors.T, dtype=np.float64) if exact is None else exact
    solution = np.linalg.lstsq(products[1:, 1:], products[1:, 0], rcond=None)[0]
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

"""Read, sketch and search a folder of adapters, and compare with what was planted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.relations.adapters import Planted
from scanner.adapter import open_weights, parse_config, read_json_object, view_adapter
from scanner.weights import measure_adapter
from scanner.weights.inner import Updates, cosine
from scanner.weights.merges import find_merges
from scanner.weights.relations import NEAR, Relation, SketchTable, find_near_duplicates

__all__ = ["Figures", "Seconds", "measure", "read_adapter"]

NAIVE_SAMPLE = 400


@dataclass(frozen=True)
class Seconds:
    """What one step took."""

    wall: float
    cpu: float
    """Of all threads: what counts on a machine that does other work as well."""


@dataclass(frozen=True)
class Figures:
    """What one size took and gave."""

    adapters: int
    effective_size_median: float
    pairs_wanted: int
    """Planted pairs with a dense |cosine| >= 0.98."""
    pairs_found: int
    pairs_missed: int
    pairs_false: int
    """Reported with a dense |cosine| < 0.98, or not planted at all."""
    by_kind: dict[str, str]
    """Planted as -> found of wanted."""
    hard_negatives: int
    """Planted pairs at 0.95 <= |cosine| < 0.98."""
    estimated_missed: int
    """The same search without any file."""
    estimated_false: int
    merges: dict[str, str]
    """How it was made -> found with all its parts and weights (within 1 %) of planted."""
    merges_false: int
    """Sums that were reported and not planted."""
    n_compared: int
    """Pairs of sketches whose cosine was computed."""
    n_exact: int
    n_left: int
    seconds: dict[str, Seconds]
    """`read`: opening files and parsing them into views, without factors; `sketch`: the weight scan;
    `search`: near-duplicates with exact cosines of all candidates, files included; `search_sketches`: from sketches
    alone; `merges`: among all adapters, exact ones included."""
    naive_pair_s: float
    """CPU seconds of one exact cosine, the mean of a sample of pairs, files open and cached."""

    @property
    def naive_all_s(self) -> float:
        """All pairs at that price: extrapolated, not measured."""
        return self.naive_pair_s * self.adapters * (self.adapters - 1) / 2

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"naive_all_extrapolated_s": round(self.naive_all_s, 1)}


def read_adapter(folder: Path) -> Updates:
    """An adapter's updates through the scanner's own reader; factors are read when asked for."""
    path = folder / "adapter_model.safetensors"
    config = parse_config(read_json_object(folder / "adapter_config.json", 2**20))
    return view_adapter(open_weights([path], path.name), config, 512).updates


def measure(folder: Path, planted: Planted) -> Figures:
    """Everything, once."""
    seconds: dict[str, Seconds] = {}
    with _timed(seconds, "read"):
        adapters = {name: read_adapter(folder / name) for name in planted.names}
    with _timed(seconds, "sketch"):
        table = SketchTable.of((name, measure_adapter(updates).sketch) for name, updates in adapters.items())
    with _timed(seconds, "search"):
        found = find_near_duplicates(table, adapters.get)
    with _timed(seconds, "search_sketches"):
        estimated = find_near_duplicates(table)
    with _timed(seconds, "merges"):
        merges = find_merges(table, table.ids, adapters.get)

    wanted = {pair for pair, value in planted.cosines.items() if abs(value) >= NEAR}
    reported, guessed = _pairs(found.relations), _pairs(estimated.relations)
    by_kind = Counter(planted.kinds[pair] for pair in wanted)
    hits = Counter(planted.kinds[pair] for pair in wanted & reported)
    merged, false_merges = _merges(planted, merges.relations)
    return Figures(
        adapters=len(adapters),
        effective_size_median=round(float(np.median(table.sizes)), 1),
        pairs_wanted=len(wanted),
        pairs_found=len(wanted & reported),
        pairs_missed=len(wanted - reported),
        pairs_false=len(reported - wanted),
        by_kind={kind: f"{hits[kind]} of {n}" for kind, n in sorted(by_kind.items())},
        hard_negatives=sum(0.95 <= abs(value) < NEAR for value in planted.cosines.values()),
        estimated_missed=len(wanted - guessed),
        estimated_false=len(guessed - wanted),
        merges=merged,
        merges_false=false_merges,
        n_compared=found.n_compared,
        n_exact=found.n_exact,
        n_left=found.n_left + merges.n_left,
        seconds=seconds,
        naive_pair_s=_naive(adapters),
    )


@contextmanager
def _timed(seconds: dict[str, Seconds], name: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    seconds[name] = Seconds(round(time.perf_counter() - wall, 2), round(time.process_time() - cpu, 2))


def _pairs(relations: tuple[Relation, ...]) -> set[frozenset[str]]:
    return {frozenset((relation.adapter_id, relation.other_id)) for relation in relations}


def _merges(planted: Planted, relations: tuple[Relation, ...]) -> tuple[dict[str, str], int]:
    found: dict[str, dict[str, float]] = {}
    for relation in relations:
        found.setdefault(relation.adapter_id, {})[relation.other_id] = relation.coefficient
    wanted, hits = Counter[str](), Counter[str]()
    for name, (kind, weights) in planted.merges.items():
        wanted[kind] += 1
        parts = found.get(name, {})
        hits[kind] += parts.keys() == weights.keys() and all(
            abs(parts[part] / weight - 1) < 0.01 for part, weight in weights.items()
        )
    return {kind: f"{hits[kind]} of {n}" for kind, n in sorted(wanted.items())}, len(
        found.keys() - planted.merges.keys()
    )


def _naive(adapters: dict[str, Updates]) -> float:
    """CPU seconds of one exact cosine."""
    rng, names = np.random.default_rng(1), list(adapters)
    pairs = [rng.choice(len(names), size=2, replace=False) for _ in range(NAIVE_SAMPLE)]
    began = time.process_time()
    for i, j in pairs:
        cosine(adapters[names[i]], adapters[names[j]])
    return (time.process_time() - began) / len(pairs)

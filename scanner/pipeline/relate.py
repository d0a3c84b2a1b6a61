"""After stage 7: how new adapters relate to all of their base in the store, from sketches alone.

Which adapters are new follows from the store (shards that were not related yet), so what a run that died has left is
made up for by the next one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from scanner.errors import LorascopeError
from scanner.model import ScanRecord
from scanner.pipeline.append import run_suffix
from scanner.pipeline.reopen import reopen_adapter
from scanner.settings import Settings
from scanner.store.files import StoreRoot
from scanner.store.write import Row, append_shard, row_id_of, shard_id_of
from scanner.weights import SKETCH_VERSION
from scanner.weights.inner import Updates
from scanner.weights.merges import find_merges
from scanner.weights.relations import Load, Relation, RelationKind, SketchTable, find_near_duplicates

if TYPE_CHECKING:
    from scanner.store.views import Database

__all__ = ["RELATIONS_VERSION", "Related", "relate_new", "relate_scan"]

RELATIONS_VERSION = f"relations-1/{SKETCH_VERSION}"
BATCH = 50_000
"""Sketches that are read at once: 200 MB. A base with more is read as a whole."""


@dataclass(frozen=True)
class Related:
    """What `relate_new` found."""

    n_new: int = 0
    """Adapters that were new."""
    kinds: Mapping[str, int] | None = None
    """Relations by kind."""
    n_left: int = 0
    """Pairs and possible merges that limits kept from being looked at."""


def relate_scan(
    root: StoreRoot, records: Sequence[ScanRecord], scan_id: str, now: datetime, settings: Settings
) -> Related:
    """`relate_new` for an on-demand scan whose records are appended and whose files still lie here.

    Does nothing, and opens nothing, where neither the store nor the scan has a second sketch.

    Raises:
        StoreError: the store cannot be read or written.
    """
    n_own = sum(bool(r.weights and r.weights.sketch and r.weights.sketch.values) for r in records)
    own = f"-{run_suffix(scan_id)}.parquet"
    if n_own == 0 or (n_own < 2 and all(path.endswith(own) for path in root.list_parquet("weight_sketches"))):
        return Related()
    return relate_new(root, scan_id, now, _loader(records, settings))


def relate_new(root: StoreRoot, crawl_id: str, now: datetime, load: Load | None = None) -> Related:
    """Relate what was scanned since the last time to all sketches of the same base; append `relations`.

    Args:
        root: the store.
        crawl_id: the crawl or scan that asks.
        now: the rows' time.
        load: where the factors of adapters are to be had; without it all relations are estimates.

    Raises:
        StoreError: the store cannot be read or written.
    """
    if not root.list_parquet("weight_sketches"):
        return Related()
    from scanner.store.views import open_database  # not before it is clear that there is something to ask

    with root.exclusive():  # of two runs at once, one relates
        database = open_database(root)
        try:
            shards = _pending(database)
            if not shards:
                return Related()
            new = _new_adapters(database, shards)
            rows, n_left = _relate(database, new, crawl_id, load)
        finally:
            database.close()
        _append(root, rows, len(new), shards, crawl_id, now)
    return Related(len(new), dict(Counter(row["kind"] for row in rows)), n_left)


def _pending(database: Database) -> list[str]:
    """Shards with sketches that nobody has related yet. Not whole runs: another one may be in the midst of its own."""
    found = database.rows(
        "SELECT DISTINCT shard_id FROM raw_runs WHERE kind = 'shard' AND shard_id IN "
        "(SELECT shard_id FROM raw_weight_sketches WHERE version = $1) AND shard_id NOT IN "
        "(SELECT run_id FROM raw_runs WHERE kind = 'related') ORDER BY 1",
        [SKETCH_VERSION],
    )
    return [row["shard_id"] for row in found]


def _new_adapters(database: Database, shards: Sequence[str]) -> set[str]:
    found = database.rows(
        "SELECT DISTINCT adapter_id FROM raw_weight_sketches WHERE version = $1 AND effective_size IS NOT NULL "
        "AND shard_id IN (SELECT unnest($2::VARCHAR[]))",
        [SKETCH_VERSION, list(shards)],
    )
    return {row["adapter_id"] for row in found}


def _relate(database: Database, new: set[str], crawl_id: str, load: Load | None) -> tuple[list[Row], int]:
    rows, n_left = [], 0
    for base_model, table in _tables(database, new):
        wanted = new & set(table.ids)
        near = find_near_duplicates(table, load, wanted=wanted)
        merges = find_merges(table, [i for i in table.ids if i in wanted], load)
        n_left += near.n_left + merges.n_left
        rows += [_row(relation, base_model, crawl_id) for relation in (*near.relations, *merges.relations)]
    return rows, n_left


def _tables(database: Database, new: set[str]) -> Iterator[tuple[str, SketchTable]]:
    """(base model, its sketches, the oldest repo first) of every base with a new adapter and another one."""
    counts = database.rows(
        "SELECT base_model, count(*) AS n FROM weight_sketches WHERE version = $1 AND effective_size IS NOT NULL "
        "AND base_model IN (SELECT base_model FROM raw_weight_sketches WHERE adapter_id IN "
        "(SELECT unnest($2::VARCHAR[]))) GROUP BY 1 HAVING n > 1 ORDER BY 1",
        [SKETCH_VERSION, sorted(new)],
    )
    batch: list[str] = []
    size = 0
    for number, row in enumerate(counts, start=1):
        batch.append(row["base_model"])
        size += row["n"]
        if size >= BATCH or number == len(counts):
            yield from _read_tables(database, batch)
            batch, size = [], 0


def _read_tables(database: Database, bases: Sequence[str]) -> Iterator[tuple[str, SketchTable]]:
    found = database.arrow(
        "SELECT w.base_model, w.adapter_id, w.effective_size, w.sketch FROM weight_sketches w "
        "JOIN adapters a ON a.adapter_id = w.adapter_id "
        "WHERE w.version = $1 AND w.effective_size IS NOT NULL AND w.base_model IN (SELECT unnest($2::VARCHAR[])) "
        "ORDER BY w.base_model, a.created_at NULLS LAST, w.scanned_at, w.adapter_id",
        [SKETCH_VERSION, list(bases)],
    ).combine_chunks()
    names = found.column("base_model").to_numpy()
    ids = found.column("adapter_id").to_pylist()
    sizes = found.column("effective_size").to_numpy()
    vectors = found.column("sketch").combine_chunks().flatten().to_numpy().reshape(len(ids), -1)
    for base_model in dict.fromkeys(names):
        places = np.flatnonzero(names == base_model)
        part = slice(int(places[0]), int(places[-1]) + 1)
        yield base_model, SketchTable(tuple(ids[part]), vectors[part], sizes[part])


def _row(relation: Relation, base_model: str, crawl_id: str) -> Row:
    # Of a pair there is one row, whichever side was found to be the later one.
    pair = sorted((relation.adapter_id, relation.other_id))
    is_part = relation.kind == RelationKind.MERGE_PART
    identity = ("merge_part", relation.adapter_id, relation.other_id) if is_part else ("pair", *pair)
    return {
        "row_id": row_id_of("relations", *identity, RELATIONS_VERSION),
        "adapter_id": relation.adapter_id,
        "other_adapter_id": relation.other_id,
        "base_model": base_model,
        "kind": str(relation.kind),
        "cosine": relation.cosine,
        "cosine_low": relation.cosine_low,
        "cosine_high": relation.cosine_high,
        "coefficient": relation.coefficient,
        "residual": relation.residual,
        "is_exact": relation.is_exact,
        "version": RELATIONS_VERSION,
        "crawl_id": crawl_id,
    }


def _append(root: StoreRoot, rows: list[Row], n_new: int, shards: Sequence[str], crawl_id: str, now: datetime) -> None:
    """The rows, a `related` row for every shard that is done with, and the commit marker."""
    versions = {"relations": RELATIONS_VERSION, "crawl": crawl_id, "date": now.astimezone(UTC).date().isoformat()}
    shard_id = shard_id_of("relate", shards, versions)

    def run(kind: str, run_id: str) -> Row:
        return {
            "row_id": row_id_of("runs", kind, shard_id, run_id),
            "run_id": run_id,
            "kind": kind,
            "crawl_id": crawl_id,
            "finished_at": now,
        }

    done = [run("related", shard) for shard in shards]
    marker = {**run("relate", shard_id), "n_adapters": n_new}
    append_shard(root, shard_id, {"relations": rows, "runs": done}, marker, now)


def _loader(records: Sequence[ScanRecord], settings: Settings) -> Load:
    """Reads the adapters of a scan again, those whose files still lie here."""
    by_id = {record.info.adapter_id: record for record in records if record.local_path}

    def load(adapter_id: str) -> Updates | None:
        record = by_id.get(adapter_id)
        try:
            view = reopen_adapter(record, settings) if record else None
        except LorascopeError:
            return None  # it was there when it was scanned: the estimate stands
        return view.updates if view else None

    return load

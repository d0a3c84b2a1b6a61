"""Append one shard: a file per table, then the commit marker.

Readers join facts to markers, so a shard that was half written when its process died is invisible. A retry within one
run overwrites itself: the names follow from the shard's membership and the run, and every row carries a `row_id`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from scanner.store.files import StoreRoot
from scanner.store.schema import SCHEMA_VERSION, TABLES

__all__ = ["Row", "append_shard", "as_stored", "row_id_of", "shard_id_of", "utc_now"]

Row = dict[str, Any]


def utc_now() -> datetime:
    """The present, with its zone."""
    return datetime.now(UTC)


def row_id_of(table: str, *parts: object) -> str:
    """sha256 over the table's name and what the row describes, in hex."""
    return hashlib.sha256("\0".join((table, *map(str, parts))).encode()).hexdigest()


def shard_id_of(kind: str, members: Sequence[str], versions: Mapping[str, str]) -> str:
    """Deterministic shard name: its kind and a digest of (members, detector versions, schema version)."""
    text = json.dumps([kind, sorted(members), dict(versions), SCHEMA_VERSION], sort_keys=True)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def append_shard(
    root: StoreRoot,
    shard_id: str,
    rows: Mapping[str, Sequence[Row]],
    marker: Row | None,
    scanned_at: datetime,
) -> dict[str, int]:
    """Write the rows of one shard and, last, its marker row in `runs`, whose `detail` says how many rows there are.

    Args:
        root: the store.
        shard_id: from `shard_id_of`; also the files' name.
        rows: table -> rows, each with its `row_id`; `shard_id` and `scanned_at` are filled in here.
        marker: the `runs` row, or None when the caller's rows are themselves `runs` or `hub_status` rows.
        scanned_at: the run's logical time; its date is the partition.

    Returns:
        Rows written per table.

    Raises:
        StoreError: the store cannot be written.
    """
    date = scanned_at.astimezone(UTC).date().isoformat()
    written: dict[str, int] = {}
    tables = {name: list(table_rows) for name, table_rows in rows.items() if table_rows}
    if marker is not None:
        tables["runs"] = [*tables.pop("runs", []), marker]  # popped and set again: the marker is written last
    for name, table_rows in tables.items():
        if name == "runs" and marker is not None:
            detail = {**json.loads(marker.get("detail") or "{}"), "rows": dict(written)}
            table_rows[-1] = {**marker, "detail": json.dumps(detail)}
        filled = [{**row, "shard_id": shard_id, "scanned_at": scanned_at} for row in table_rows]
        root.write(f"{name}/scan_date={date}/{shard_id}.parquet", _to_arrow(name, filled))
        written[name] = len(filled)
    return written


def _to_arrow(name: str, rows: Sequence[Row]) -> pa.Table:
    schema = TABLES[name]
    foreign = {key for row in rows for key in row} - set(schema.names)
    if foreign:
        raise KeyError(f"columns {sorted(foreign)} are not part of {name}")
    return pa.Table.from_pylist([as_stored(row) for row in rows], schema=schema)


def as_stored(row: Row) -> Row:
    """A row as it is read again: NaN and infinities are null."""
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}

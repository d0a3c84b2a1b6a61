"""What processes that died have left in a store, and whether every committed shard is whole.

A file without its shard's marker and a `.tmp` file are invisible to every reader; they only take up room. They may also
be somebody's work of this very moment, so that only old ones are ever removed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from scanner.errors import StoreError
from scanner.store.files import StoreRoot
from scanner.store.schema import TABLES
from scanner.store.views import Database, open_database

__all__ = ["GRACE_S", "Leftover", "StoreCheck", "check_store", "remove_leftovers"]

GRACE_S = 24 * 3_600.0
"""Younger files may belong to a run that is still writing."""


@dataclass(frozen=True)
class Leftover:
    """A file that no reader opens or shows."""

    path: str
    kind: str
    """`temporary` or `uncommitted`."""
    age_s: float
    size_bytes: int


@dataclass(frozen=True)
class StoreCheck:
    """The state of a store."""

    shards: int
    """Committed ones."""
    leftovers: tuple[Leftover, ...]
    incomplete: tuple[str, ...]
    """Committed shards whose rows are not as many as their marker says, or files that cannot be read, in words."""


def check_store(root: StoreRoot, now: datetime) -> StoreCheck:
    """Compare files and markers.

    Raises:
        StoreError: the store cannot be listed or a file of it cannot be read.
    """
    listed = [info for table in TABLES for info in _files(root, table)]  # before the markers, see `_kind_of`
    damaged = _damaged(root, listed)
    if damaged:  # no query gets past such a file
        return StoreCheck(0, (), damaged)
    database = open_database(root)
    try:
        markers = database.rows(
            "SELECT DISTINCT shard_id FROM raw_runs WHERE kind IN ('shard', 'judge', 'relate', 'crawl')"
        )
        incomplete = tuple(sorted(_incomplete(database)))
    finally:
        database.close()
    committed = {row["shard_id"] for row in markers}
    leftovers = [
        Leftover(info.path, kind, (now - info.mtime).total_seconds(), info.size)
        for info in listed
        if (kind := _kind_of(root, info, committed))
    ]
    return StoreCheck(len(committed), tuple(leftovers), incomplete)


def remove_leftovers(root: StoreRoot, leftovers: Sequence[Leftover], grace_s: float = GRACE_S) -> list[Leftover]:
    """Delete those older than `grace_s`; returns them.

    Raises:
        StoreError: a file cannot be deleted.
    """
    removed = [leftover for leftover in leftovers if leftover.age_s > grace_s]
    try:
        for leftover in removed:
            root.filesystem.delete_file(leftover.path)
    except OSError as error:
        raise StoreError(f"cannot delete from the store at {root.uri}: {error}") from error
    return removed


def _damaged(root: StoreRoot, listed: Sequence[pafs.FileInfo]) -> tuple[str, ...]:
    """Finished files whose footer cannot be read: no writer of ours leaves one, a disk or a copy may."""
    found = []
    for info in listed:
        if info.path.endswith(".parquet"):
            try:
                pq.read_metadata(info.path, filesystem=root.filesystem)
            except (OSError, pa.ArrowException) as error:
                text = next(iter(str(error).splitlines()), type(error).__name__)[:120]
                found.append(f"{info.path.removeprefix(f'{root.path}/')} cannot be read: {text}")
    return tuple(found)


def _files(root: StoreRoot, table: str) -> list[pafs.FileInfo]:
    selector = pafs.FileSelector(f"{root.path}/{table}", recursive=True, allow_not_found=True)
    try:
        return [info for info in root.filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
    except OSError as error:
        raise StoreError(f"cannot list the store at {root.uri}: {error}") from error


def _kind_of(root: StoreRoot, info: pafs.FileInfo, committed: set[str]) -> str | None:
    """The files were listed before the markers were read, so a shard that was committed in between is not accused."""
    if info.base_name.endswith(".tmp"):
        return "temporary"
    table = info.path.removeprefix(f"{root.path}/").split("/")[0]
    if not info.base_name.endswith(".parquet") or table in ("runs", "hub_status"):
        return None  # rows of these two are facts by themselves
    return None if info.base_name.removesuffix(".parquet") in committed else "uncommitted"


def _incomplete(database: Database) -> list[str]:
    """Shards whose rows are not as many as `append_shard` noted in their marker."""
    there: dict[tuple[str, str], int] = {}
    for table in TABLES:
        for row in database.rows(f"SELECT shard_id, count(*) AS n FROM raw_{table} GROUP BY 1"):
            there[row["shard_id"], table] = row["n"]
    wrong = []
    for marker in database.rows(
        "SELECT shard_id, detail FROM raw_runs WHERE kind IN ('shard', 'judge', 'relate', 'crawl')"
    ):
        noted: dict[str, int] = json.loads(marker["detail"] or "{}").get("rows", {})
        for table, wanted in noted.items():
            found = there.get((marker["shard_id"], table), 0)
            if found != wanted:
                wrong.append(f"{marker['shard_id']}: {found} of {wanted} rows of {table}")
    return wrong

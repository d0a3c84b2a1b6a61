"""What must hold of a store at any moment, and what makes two stores equal. Read from the raw files and the views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from scanner.store import TABLES, Database, open_database, open_root

__all__ = ["Contents", "Facts", "look", "read_contents"]

_TIMES = {"shard_id", "scanned_at", "created_at", "last_modified", "seconds", "copied_from", "base_evidence"}
"""Columns that say when and by which run (`base_evidence`: whether an earlier one is remembered), or how long it took:
two crawls of the same registry differ in them."""
_FAMILY = {"row_id", "judged_at", "crawl_id", "q_value", "reference_id", "reference_n"}
"""Columns of a verdict that also depend on who was judged together."""
COMPARED: Mapping[str, set[str]] = {
    "adapters": _TIMES,
    "findings": _TIMES,
    "weight_scans": _TIMES,
    "module_features": _TIMES,
    "probe_scans": _TIMES,
    "probe_rates": _TIMES,
    "trigger_searches": _TIMES,
    "verdicts": _TIMES | _FAMILY,
}
FACTS = [table for table in COMPARED if table != "verdicts"]
_COMMITTED = "shard_id IN (SELECT shard_id FROM raw_runs WHERE kind IN ('shard', 'judge'))"

Contents = dict[str, Counter[tuple[Any, ...]]]


@dataclass
class Facts:
    """A store at one moment."""

    expected: int = 0
    """Who must have a current verdict in the end."""
    judged: int = 0
    """Expected adapters with exactly one current verdict."""
    doubled: int = 0
    """Rows of committed shards that say the same as another one, and adapters with a second verdict."""
    lost: int = 0
    """Rows that a committed shard's members imply and that are not there."""
    problems: list[str] = field(default_factory=list)
    temporary: int = 0
    uncommitted: int = 0
    adapters: int = 0
    """Adapters in the store, at every commit that was scanned."""
    judged_ever: int = 0
    """Those of them with exactly one verdict."""


def look(store: Path, expected: set[tuple[str, str]]) -> Facts:
    """Check every rule on a store that may have been left at any moment.

    Nothing in these registries is looked at twice by design (no repo ends in `error`), so that even the raw rows of
    committed shards must be distinct.
    """
    facts = Facts(expected=len(expected))
    files = [path for path in store.rglob("*") if path.is_file()]
    facts.temporary = sum(path.suffix == ".tmp" and not path.name.startswith(".decoy") for path in files)
    for path in files:
        if path.suffix == ".parquet":
            pq.read_table(path)  # whole, committed or not: a file under its final name has no excuse
    database = open_database(open_root(str(store)))
    try:
        _shards(database, facts)
        _rows_once(database, facts)
        _verdicts(database, facts, expected)
        facts.uncommitted = sum(
            _one(database, f"SELECT count(DISTINCT shard_id) FROM raw_{table} WHERE NOT {_COMMITTED}")
            for table in COMPARED
        )
        facts.adapters = _one(database, "SELECT count(*) FROM adapters")
        once = "SELECT adapter_id FROM verdicts GROUP BY 1 HAVING count(*) = 1"
        facts.judged_ever = _one(database, f"SELECT count(*) FROM adapters WHERE adapter_id IN ({once})")
    finally:
        database.close()
    return facts


def read_contents(store: Path) -> Contents:
    """Every visible row of the tables that count, without what differs from run to run."""
    database = open_database(open_root(str(store)))
    try:
        contents: Contents = {}
        for table, ignored in COMPARED.items():
            columns = ", ".join(f'"{name}"' for name in TABLES[table].names if name not in ignored)
            rows = database.rows(f"SELECT {columns} FROM {table}")
            contents[table] = Counter(tuple(row.values()) for row in rows)
        return contents
    finally:
        database.close()


def _one(database: Database, sql: str) -> int:
    (row,) = database.rows(sql)
    return int(next(iter(row.values())))


def _shards(database: Database, facts: Facts) -> None:
    """Committed shards are whole: what the marker and the members imply is there, in the same shard."""
    markers = database.rows(
        "SELECT DISTINCT shard_id, kind, n_adapters, n_repos FROM raw_runs WHERE kind IN ('shard', 'judge')"
    )
    for shard in markers:
        name = f"'{shard['shard_id']}'"
        table = "adapters" if shard["kind"] == "shard" else "verdicts"
        there = _one(database, f"SELECT count(DISTINCT row_id) FROM raw_{table} WHERE shard_id = {name}")
        repos = _one(database, f"SELECT count(DISTINCT repo_uid) FROM raw_{table} WHERE shard_id = {name}")
        _lose(facts, f"{table} of {name}", shard["n_adapters"] - there)
        if shard["kind"] != "shard":
            continue
        _lose(facts, f"repos of {name}", shard["n_repos"] - repos)
        for what, sql in {
            "weight_scans": "a.outcome = 'pass' AND NOT EXISTS (FROM raw_weight_scans w WHERE "
            "w.adapter_id = a.adapter_id AND w.shard_id = a.shard_id)",
            "module_features": "a.outcome = 'pass' AND a.modules <> (SELECT count(*) FROM raw_module_features m WHERE "
            "m.adapter_id = a.adapter_id AND m.shard_id = a.shard_id)",
            "findings": "a.reason = 'malformed_file' AND NOT EXISTS (FROM raw_findings f WHERE "
            "f.adapter_id = a.adapter_id AND f.shard_id = a.shard_id)",
            "probe_scans": "a.task_profile <> 'not_applicable' AND a.base_model <> 'unresolved' AND NOT EXISTS "
            "(FROM raw_probe_scans p WHERE p.adapter_id = a.adapter_id AND p.shard_id = a.shard_id)",
            "probe_rates": "EXISTS (FROM raw_probe_scans p WHERE p.adapter_id = a.adapter_id "
            "AND p.shard_id = a.shard_id AND p.outcome = 'pass') AND 24 <> ("
            "SELECT count(*) FROM raw_probe_rates r WHERE r.adapter_id = a.adapter_id AND r.shard_id = a.shard_id "
            "AND r.battery_id NOT LIKE 'local-%')",
        }.items():
            query = f"SELECT count(*) FROM raw_adapters a WHERE shard_id = {name} AND {sql}"
            _lose(facts, f"{what} of {name}", _one(database, query))


def _rows_once(database: Database, facts: Facts) -> None:
    for table in COMPARED:
        repeated = _one(database, f"SELECT count(*) - count(DISTINCT row_id) FROM raw_{table} WHERE {_COMMITTED}")
        _double(facts, f"rows of {table}", repeated)
        visible = _one(database, f"SELECT count(*) - count(DISTINCT row_id) FROM {table}")
        _double(facts, f"rows of the view {table}", visible)


def _verdicts(database: Database, facts: Facts, expected: set[tuple[str, str]]) -> None:
    _double(facts, "verdicts", _one(database, "SELECT count(*) - count(DISTINCT adapter_id) FROM verdicts"))
    rows = database.rows("SELECT repo_uid, adapter_path FROM current_verdicts")
    current = Counter((row["repo_uid"], row["adapter_path"]) for row in rows)
    _double(facts, "current verdicts", sum(count - 1 for count in current.values()))
    facts.judged = sum(current[key] == 1 for key in expected)


def _lose(facts: Facts, what: str, n: int) -> None:
    if n:
        facts.lost += abs(n)
        facts.problems.append(f"{what}: {n} missing")


def _double(facts: Facts, what: str, n: int) -> None:
    if n:
        facts.doubled += n
        facts.problems.append(f"{what}: {n} doubled")

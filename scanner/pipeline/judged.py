"""Facts of the adapters that are judged: the store's rows, or the rows that a scan has just written.

Both are rows of the same tables and go through the same code: a verdict does not depend on where they came from.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from scanner.calibration import BatteryEvidence, Policy, judge_behaviour
from scanner.model import Finding, Outcome, PrefixRun, ScanRecord, SearchReport, Severity
from scanner.store import Database, Row, as_stored, newest_search, prefix_run
from scanner.store.rows import record_rows

__all__ = ["JudgedFacts", "facts_from_records", "facts_from_store"]

_TABLES = ("adapters", "findings", "weight_scans", "probe_scans", "probe_rates", "trigger_searches")


@dataclass(frozen=True)
class JudgedFacts:
    """One adapter's rows."""

    adapter: Row
    findings: tuple[Finding, ...]
    """The severest first."""
    features: dict[str, float | None]
    probe: Row | None
    battery: BatteryEvidence | None
    search: SearchReport | None
    """The newest trigger search that gave a result; a later one that failed does not undo what was seen."""


def facts_from_store(database: Database, adapter_ids: Sequence[str], policy: Policy) -> dict[str, JudgedFacts]:
    """What the store knows of some adapters, by their ids.

    Raises:
        StoreError: a file of the store cannot be read.
    """
    where = "WHERE adapter_id IN (SELECT unnest(?::VARCHAR[]))"
    return _facts(
        adapter_ids,
        {name: database.rows(f"SELECT * FROM {name} {where}", [list(adapter_ids)]) for name in _TABLES},
        policy,
    )


def facts_from_records(records: Sequence[ScanRecord], scanned_at: datetime, policy: Policy) -> dict[str, JudgedFacts]:
    """The same from records alone, by adapter_id: what the store would say if it held nothing else.

    Args:
        records: of different adapters.
        scanned_at: the run's logical time.
        policy: thresholds.
    """
    tables = record_rows(records)
    # One row for each row_id, as the views have it.
    rows = {
        name: {row["row_id"]: {**as_stored(row), "scanned_at": scanned_at} for row in tables[name]}.values()
        for name in _TABLES
    }
    return _facts([record.info.adapter_id for record in records], rows, policy)


def _facts(adapter_ids: Iterable[str], tables: Mapping[str, Iterable[Row]], policy: Policy) -> dict[str, JudgedFacts]:
    groups: dict[str, dict[str, list[Row]]] = {name: defaultdict(list) for name in tables}
    for name, rows in tables.items():
        for row in rows:
            groups[name][row["adapter_id"]].append(row)
    return {
        adapter_id: _facts_of({name: group[adapter_id] for name, group in groups.items()}, policy)
        for adapter_id in adapter_ids
    }


def _facts_of(rows: Mapping[str, list[Row]], policy: Policy) -> JudgedFacts:
    # The newest probe that gave a result; a later one that failed does not undo what was seen.
    probe = max(rows["probe_scans"], key=lambda row: (row["outcome"] == Outcome.PASS, row["scanned_at"]), default=None)
    runs = [
        prefix_run(r)
        for r in sorted(rows["probe_rates"], key=lambda row: str(row["row_id"]))
        if probe and r["battery_id"] == probe["battery_id"] and r["scanned_at"] == probe["scanned_at"]
    ]
    usable = probe is not None and probe["outcome"] == Outcome.PASS and runs
    return JudgedFacts(
        adapter=rows["adapters"][0],
        findings=_severest_first(rows["findings"]),
        # In the order of time: of a feature that two versions measured, the later value counts.
        features={
            row["feature"]: row["value"] for row in sorted(rows["weight_scans"], key=lambda row: row["scanned_at"])
        },
        probe=probe,
        battery=_battery(probe, runs, policy) if probe is not None and usable else None,
        search=newest_search(rows["trigger_searches"], rows["probe_rates"]),
    )


def _battery(probe: Row, runs: Sequence[PrefixRun], policy: Policy) -> BatteryEvidence:
    return judge_behaviour(
        runs,
        policy,
        probe["task_profile"],
        n_classes=probe["n_classes"],
        n_attack_texts=probe["n_attack_texts"],
        labels=json.loads(probe["labels"]) if probe["labels"] else (),
    )


def _severest_first(rows: Iterable[Row]) -> tuple[Finding, ...]:
    found = [
        Finding(r["rule_id"], Severity(r["severity"]), r["message"], r["evidence"], Outcome(r["outcome"]))
        for r in sorted(rows, key=lambda row: (row["rule_id"], row["evidence"], row["row_id"]))
    ]
    return tuple(sorted(found, key=lambda f: -f.severity.order))

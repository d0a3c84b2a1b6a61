"""Facts of the adapters that are judged: the store's rows, or the rows that a scan has just written.

Both are rows of the same tables and go through the same code: a verdict does not depend on where they came from.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from scanner.calibration import BatteryEvidence, Policy, judge_behaviour, stored_features
from scanner.model import Finding, Outcome, PrefixRun, ScanRecord, SearchReport, Severity
from scanner.store import Database, Row, as_stored, newest_search, prefix_run
from scanner.store.rows import record_rows

__all__ = ["JudgedFacts", "facts_from_records", "facts_from_store", "weight_features"]

_ADAPTER = (
    "adapter_id", "repo_id", "repo_uid", "commit_sha", "adapter_path", "owner", "base_model", "peft_type", "rank",
    "scaling", "target_modules", "task_type", "task_profile", "task_profile_reason", "coverage", "content_sha256",
    "stage_reached", "outcome", "reason", "message",
)  # fmt: skip
_TABLES: Mapping[str, Sequence[str]] = {
    "adapters": _ADAPTER,
    "findings": ("row_id", "adapter_id", "rule_id", "severity", "message", "evidence", "outcome"),
    "probe_scans": ("*",),
    "probe_rates": (
        "row_id", "scanned_at", "adapter_id", "battery_id", "category", "prefix", "position", "answers",
        "base_answers", "margin", "divergence", "base_divergence", "concentration", "refusal_rate",
    ),
    "trigger_searches": ("*",),
}  # fmt: skip
"""What a verdict needs of each: a store may hold a hundred thousand adapters."""
_LOCAL, _DECIDES = "local-", ("control", "trigger")
_WANTED = {"probe_rates": f"(NOT starts_with(battery_id, '{_LOCAL}') OR category IN {_DECIDES})"}
"""Of the battery around a found trigger the neighbours decide nothing."""


@dataclass(frozen=True)
class JudgedFacts:
    """One adapter's rows."""

    adapter: Row
    findings: tuple[Finding, ...]
    """The severest first."""
    features: Mapping[str, float | None]
    """Those that weights are compared by."""
    probe: Row | None
    battery: BatteryEvidence | None
    search: SearchReport | None
    """The newest trigger search that gave a result; a later one that failed does not undo what was seen."""

    @property
    def tested_battery(self) -> BatteryEvidence | None:
        """The battery where it can flag by itself: free answers cannot (ADR 19)."""
        return self.battery if self.battery is not None and not self.battery.needs_rank else None


def facts_from_store(database: Database, adapter_ids: Sequence[str], policy: Policy) -> dict[str, JudgedFacts]:
    """What the store knows of some adapters, by their ids.

    Raises:
        StoreError: a file of the store cannot be read.
    """
    tables = {
        name: database.of_adapters(name, adapter_ids, columns, _WANTED.get(name, "true"))
        for name, columns in _TABLES.items()
    }
    return _facts(adapter_ids, tables, weight_features(database, adapter_ids, policy.features), policy)


def weight_features(
    database: Database, adapter_ids: Sequence[str], names: Iterable[str]
) -> dict[str, dict[str, float | None]]:
    """adapter_id -> what these features are made of, of those adapters that have any.

    Args:
        database: the store.
        adapter_ids: whose.
        names: of features; known ones, because they become part of a query.

    Raises:
        StoreError: a file of the store cannot be read.
    """
    stored = stored_features(names)
    wanted = ", ".join(f"'{name}'" for name in sorted(stored))
    # Of a feature that two versions measured, the later value counts.
    key = ("adapter_id", "feature")
    rows = database.of_adapters("weight_scans", adapter_ids, (*key, "value"), f"feature IN ({wanted})", key)
    return _features(rows, stored)


def _features(rows: Iterable[Row], stored: Collection[str]) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = defaultdict(dict)
    for row in rows:
        if row["feature"] in stored:
            found[row["adapter_id"]][row["feature"]] = row["value"]
    return found


def facts_from_records(records: Sequence[ScanRecord], scanned_at: datetime, policy: Policy) -> dict[str, JudgedFacts]:
    """The same from records alone, by adapter_id: what the store would say if it held nothing else.

    Args:
        records: of different adapters.
        scanned_at: the run's logical time.
        policy: thresholds.
    """
    tables = record_rows(records)
    # One row for each row_id, as the views have it.
    rows: dict[str, Iterable[Row]] = {
        name: {row["row_id"]: {**as_stored(row), "scanned_at": scanned_at} for row in tables[name]}.values()
        for name in (*_TABLES, "weight_scans")
    }
    features = _features(rows.pop("weight_scans"), stored_features(policy.features))
    rows["probe_rates"] = [
        row for row in rows["probe_rates"] if not row["battery_id"].startswith(_LOCAL) or row["category"] in _DECIDES
    ]
    return _facts([record.info.adapter_id for record in records], rows, features, policy)


def _facts(
    adapter_ids: Iterable[str],
    tables: Mapping[str, Iterable[Row]],
    features: Mapping[str, dict[str, float | None]],
    policy: Policy,
) -> dict[str, JudgedFacts]:
    groups: dict[str, dict[str, list[Row]]] = {name: defaultdict(list) for name in tables}
    for name, rows in tables.items():
        for row in rows:
            groups[name][row["adapter_id"]].append(row)
    nothing: list[Row] = []
    return {
        adapter_id: _facts_of(
            {name: group.get(adapter_id, nothing) for name, group in groups.items()},
            features.get(adapter_id, {}),
            policy,
        )
        for adapter_id in adapter_ids
    }


def _facts_of(rows: Mapping[str, list[Row]], features: Mapping[str, float | None], policy: Policy) -> JudgedFacts:
    # The newest probe that gave a result; a later one that failed does not undo what was seen.
    probe = max(rows["probe_scans"], key=lambda row: (row["outcome"] == Outcome.PASS, row["scanned_at"]), default=None)
    runs = []
    if probe is not None and probe["outcome"] == Outcome.PASS:
        same = (probe["battery_id"], probe["scanned_at"])
        rates = [row for row in rows["probe_rates"] if (row["battery_id"], row["scanned_at"]) == same]
        runs = [prefix_run(row) for row in sorted(rates, key=lambda row: str(row["row_id"]))]
    adapter, searches = rows["adapters"][0], rows["trigger_searches"]
    return JudgedFacts(
        adapter={name: adapter[name] for name in _ADAPTER},
        findings=_severest_first(rows["findings"]) if rows["findings"] else (),
        features=features,
        probe=probe,
        battery=_battery(probe, runs, policy) if probe is not None and runs else None,
        search=newest_search(searches, rows["probe_rates"]) if searches else None,
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

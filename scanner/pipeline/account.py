"""`lorascope explain`: one verdict with everything behind it, from the store alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scanner.calibration import TABLE, Policy, Rule, feature_of
from scanner.errors import UsageError
from scanner.hub.sources import folder_uid
from scanner.model import Finding
from scanner.pipeline.judged import facts_from_store, weight_features
from scanner.pipeline.outlook import what_would_change
from scanner.search_model import FoundTrigger
from scanner.store import Database, Row

__all__ = ["Account", "Neighbour", "Place", "Version", "account_of"]

NEIGHBOURS = 5
STRINGS = 5
_BY_NAME = (
    "SELECT repo_uid FROM adapters WHERE repo_id = ? UNION SELECT repo_uid FROM repo_names WHERE repo_id = ? "
    "UNION SELECT repo_uid FROM repo_events WHERE repo_id = ?"
)
"""Repos that were ever called so."""


@dataclass(frozen=True)
class Place:
    """Where one weight feature stands among the siblings of the reference that judged it."""

    feature: str
    value: float
    center: float
    spread: float
    z: float
    percentile: float
    """Share of the siblings with a smaller value, in percent."""


@dataclass(frozen=True)
class Neighbour:
    """A sibling with like weights that nothing speaks against."""

    repo_id: str | None
    adapter_path: str
    verdict: str
    distance: float
    """Largest difference of a feature, in spreads."""


@dataclass(frozen=True)
class Version:
    """One verdict of the adapter's history."""

    judged_at: str
    verdict: str
    rule: str | None
    policy_version: str
    code: str
    """Of the deciding reason."""


@dataclass(frozen=True)
class Account:
    """One adapter's verdict and what it rests on."""

    verdict: Row
    """The row of `verdicts`."""
    rule: Rule | None
    """The line of the table that decided; None of a verdict from before there was one."""
    policy: dict[str, Any]
    """Its thresholds; empty where the store does not have them any more."""
    reasons: tuple[dict[str, str], ...]
    findings: tuple[Finding, ...]
    """The severest first."""
    places: tuple[Place, ...]
    siblings: int
    steps: tuple[tuple[str, int], ...]
    """(level, siblings) of the ladder's steps."""
    neighbours: tuple[Neighbour, ...]
    probe: Row | None
    strings: tuple[Row, ...]
    """Of its battery, the strongest first, with the worst control."""
    trigger: FoundTrigger | None
    """The string that the reasons name, else the best one that its search found."""
    outlook: tuple[str, ...]
    """What would change the verdict."""
    history: tuple[Version, ...]


def account_of(database: Database, target: str) -> list[Account]:
    """The accounts of a repo's (or folder's) adapters, by path.

    Args:
        database: the store.
        target: repo id, `repo@commit` (its first digits), or a folder that was scanned.

    Raises:
        UsageError: the store has no verdict on it.
        StoreError: a file of the store cannot be read.
    """
    if (folder := folder_uid(target)) is not None:
        # Also what lies in it, as a scan of it would find.
        rows = database.rows(
            "SELECT * FROM current_verdicts WHERE repo_uid = ? OR starts_with(repo_uid, ? || '/')", [folder, folder]
        )
    else:
        name, _, commit = target.partition("@")
        rows = database.rows(f"SELECT * FROM current_verdicts WHERE repo_uid IN ({_BY_NAME})", [name, name, name])
        if commit:
            rows = database.rows(
                f"SELECT * FROM verdicts WHERE repo_uid IN ({_BY_NAME}) AND starts_with(commit_sha, ?) "
                "QUALIFY row_number() OVER (PARTITION BY adapter_id ORDER BY judged_at DESC, row_id) = 1",
                [name, name, name, commit],
            )
    if not rows:
        raise UsageError(
            f"the store has no verdict on {target[:200]}{_alike(database, target)}: scan or crawl it first"
        )
    rows.sort(key=lambda row: (str(row["repo_id"] or row["repo_uid"]), row["adapter_path"]))
    return [_account(database, row) for row in rows]


def _alike(database: Database, target: str) -> str:
    """Names that somebody may have meant."""
    rows = database.rows(
        "SELECT DISTINCT repo_id FROM adapters WHERE contains(lower(repo_id), lower(?)) ORDER BY 1 LIMIT 3",
        [target.partition("@")[0].strip("/") or "/"],
    )
    return f" (there is {', '.join(row['repo_id'] for row in rows)})" if rows else ""


def _account(database: Database, verdict: Row) -> Account:
    adapter_id = verdict["adapter_id"]
    policy = _policy_of(database, verdict)
    fact = facts_from_store(database, [adapter_id], Policy())[adapter_id]
    places, neighbours = _among_siblings(database, verdict)
    reasons = tuple(json.loads(verdict["reasons"]))
    told = "; ".join(reason["message"] for reason in reasons)
    rule = next((rule for rule in TABLE if rule.rule_id == verdict["rule"]), None)
    strings = _strings(database, fact.probe) if fact.probe else ()
    return Account(
        verdict=verdict,
        rule=rule,
        policy=policy,
        reasons=reasons,
        findings=fact.findings,
        places=places,
        siblings=verdict["reference_n"] or 0,
        steps=tuple((level, n) for level, n in json.loads(verdict["reference_steps"] or "[]")),
        neighbours=neighbours,
        probe=fact.probe,
        strings=strings,
        trigger=fact.search.named_in(told) if fact.search else None,
        outlook=what_would_change(verdict, rule, reasons, policy, strings),
        history=_history(database, adapter_id),
    )


def _policy_of(database: Database, verdict: Row) -> dict[str, Any]:
    rows = database.rows("SELECT detail FROM runs WHERE run_id = ? AND kind = 'judge'", [verdict["shard_id"]])
    found: dict[str, Any] = json.loads(rows[0]["detail"]).get("policy", {}) if rows else {}
    return found


def _strings(database: Database, probe: Row) -> tuple[Row, ...]:
    rates = [
        row
        for row in database.of_adapters("probe_rates", [probe["adapter_id"]])
        if row["battery_id"] == probe["battery_id"] and row["scanned_at"] == probe["scanned_at"]
    ]
    rates.sort(key=lambda row: (-(row["attack_rate"] or 0.0), row["prefix"]))
    controls = [row for row in rates if row["category"] == "control"]
    strings = [row for row in rates if row["category"] != "control"]
    return (*strings[:STRINGS], *controls[:1])


def _among_siblings(database: Database, verdict: Row) -> tuple[tuple[Place, ...], tuple[Neighbour, ...]]:
    profiles = database.rows("SELECT * FROM reference_profiles WHERE reference_id = ?", [verdict["reference_id"]])
    if not profiles:
        return (), ()
    adapter_id = verdict["adapter_id"]
    members = [member for member in json.loads(profiles[0]["members"]) if member != adapter_id]
    features = weight_features(database, [adapter_id, *members], [profile["feature"] for profile in profiles])
    own = features.get(adapter_id, {})
    known = [member for member in members if member in features]
    places, distances = [], np.zeros(len(known))
    for profile in sorted(profiles, key=lambda row: str(row["feature"])):
        name, spread = profile["feature"], profile["spread"]
        value = feature_of(own, name)
        others = np.array([feature_of(features[member], name) for member in known])
        if not np.isfinite(value) or not len(others):
            continue
        z = (value - profile["center"]) / spread
        percentile = 100 * float(np.mean(others < value))
        places.append(Place(name, value, profile["center"], spread, z, percentile))
        distances = np.fmax(distances, np.abs(others - value) / spread)
    if not places:
        return (), ()
    return tuple(places), _neighbours(database, known, distances)


def _neighbours(database: Database, members: Sequence[str], distances: Any) -> tuple[Neighbour, ...]:
    near = [members[place] for place in np.argsort(distances, kind="stable")[: 20 * NEIGHBOURS]]
    by_id = dict(zip(members, distances.tolist(), strict=True))
    rows = database.rows(
        "SELECT adapter_id, repo_id, adapter_path, verdict FROM current_verdicts "
        "WHERE adapter_id IN (SELECT unnest(?::VARCHAR[])) AND verdict IN ('clean', 'inconclusive')",
        [near],
    )
    rows.sort(key=lambda row: (row["verdict"] != "clean", by_id[row["adapter_id"]]))
    return tuple(
        Neighbour(row["repo_id"], row["adapter_path"], row["verdict"], by_id[row["adapter_id"]])
        for row in rows[:NEIGHBOURS]
    )


def _history(database: Database, adapter_id: str) -> tuple[Version, ...]:
    rows = database.of_adapters("verdicts", [adapter_id])
    return tuple(
        Version(
            row["judged_at"].isoformat(timespec="seconds"),
            row["verdict"],
            row["rule"],
            row["policy_version"],
            next((reason["code"] for reason in json.loads(row["reasons"])), ""),
        )
        for row in sorted(rows, key=lambda row: (row["judged_at"], row["row_id"]))
    )

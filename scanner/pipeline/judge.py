"""Stage 8: verdicts from the store alone. Nothing is downloaded or measured again."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from scanner.calibration import (
    BatteryEvidence,
    CalibrationKey,
    Decision,
    Evidence,
    Policy,
    Reference,
    Sibling,
    adjust_fdr,
    build_reference,
    decide,
    judge_battery,
    weight_p_value,
)
from scanner.model import SEQUENCE_CLASSIFICATION, Finding, Outcome, PrefixRun, Severity
from scanner.store import Database, Row, StoreRoot, append_shard, open_database, row_id_of, shard_id_of

__all__ = ["Judgement", "append_judgement", "judge_adapters", "judge_families", "pending_adapters"]


@dataclass(frozen=True)
class _Facts:
    """One adapter's rows."""

    adapter: Row
    findings: tuple[Finding, ...]
    features: dict[str, float | None]
    probe: Row | None
    battery: BatteryEvidence | None


def pending_adapters(database: Database, source: str) -> list[str]:
    """Adapters of a source that were scanned since they were last judged: new ones, and those of a run that died."""
    rows = database.rows(
        "SELECT a.adapter_id FROM adapters a ANTI JOIN verdicts v "
        "ON v.adapter_id = a.adapter_id AND v.judged_at >= a.scanned_at WHERE a.source = ? ORDER BY 1",
        [source],
    )
    return [row["adapter_id"] for row in rows]


def judge_adapters(
    root: StoreRoot, adapter_ids: Sequence[str], crawl_id: str, policy: Policy, now: datetime
) -> list[Row]:
    """Judge adapters together and append their verdicts and the references that judged them.

    The battery's false discovery rate is controlled over exactly these adapters (Benjamini-Hochberg).

    Args:
        root: the store.
        adapter_ids: who is judged; nothing is written when it is empty.
        crawl_id: the crawl or scan that they belong to.
        policy: thresholds.
        now: stored as `judged_at`.

    Returns:
        The verdict rows, in the order of `adapter_ids`.

    Raises:
        StoreError: the store cannot be read or written.
    """
    if not adapter_ids:
        return []
    database = open_database(root)
    try:
        judgement = judge_families(database, {crawl_id: adapter_ids}, policy, now)
    finally:
        database.close()
    append_judgement(root, crawl_id, judgement, policy, now)
    return judgement.rows


@dataclass(frozen=True)
class Judgement:
    """Verdict rows and the references that judged them, by calibration key."""

    rows: list[Row]
    references: dict[CalibrationKey, Reference]


def judge_families(
    database: Database, families: Mapping[str, Sequence[str]], policy: Policy, now: datetime, run_id: str = ""
) -> Judgement:
    """Judge adapters from the store alone; nothing is written.

    Args:
        database: the store.
        families: crawl or scan id -> adapters whose battery's false discovery rate is controlled together.
        policy: thresholds.
        now: stored as `judged_at`.
        run_id: part of each row's identity where an earlier judgement of the same family is to stay.
    """
    facts = _load(database, [i for members in families.values() for i in members], policy)
    q_values: dict[str, float] = {}
    for members in families.values():
        tested = [i for i in members if facts[i].battery is not None]
        q_values |= dict(zip(tested, adjust_fdr([_p(facts[i]) for i in tested]), strict=True))
    behaving_badly = {i for i, q in q_values.items() if q <= policy.q and _strong_prefixes(facts[i])}
    references = _references(database, facts.values(), behaving_badly, policy)
    rows = []
    for crawl_id, members in families.items():
        for adapter_id in members:
            fact, q_value = facts[adapter_id], q_values.get(adapter_id)
            weights = _weigh(fact, references.get(_key(fact.adapter)), policy)
            decision = decide(_evidence(fact, q_value, weights), policy)
            row = _verdict_row(fact, decision, q_value, weights, policy, crawl_id, now)
            if run_id:
                row["row_id"] = row_id_of("verdicts", row["row_id"], run_id)
            rows.append(row)
    return Judgement(rows, {key: reference for key, reference in references.items() if key is not None})


def append_judgement(root: StoreRoot, run_id: str, judgement: Judgement, policy: Policy, now: datetime) -> None:
    """Write verdicts and references as one shard.

    Raises:
        StoreError: the store cannot be written.
    """
    rows = judgement.rows
    # The day, too, because it is part of the files' place: a marker must not commit what a try of yesterday left.
    versions = {"policy": policy.version, "crawl": run_id, "date": now.astimezone(UTC).date().isoformat()}
    append_shard(
        root,
        shard_id := shard_id_of("judge", [row["adapter_id"] for row in rows], versions),
        {"verdicts": rows, "reference_profiles": _reference_rows(judgement.references.values(), now)},
        {
            "row_id": row_id_of("runs", shard_id, run_id),
            "run_id": shard_id,
            "kind": "judge",
            "crawl_id": run_id,
            "finished_at": now,
            "n_adapters": len(rows),
            "detail": json.dumps(
                {"policy": asdict(policy), "weight_flags_to_expect_by_chance": policy.alpha * len(rows)}
            ),
        },
        now,
    )


def _strong_prefixes(fact: _Facts) -> tuple[PrefixRun, ...]:
    return fact.battery.prefixes if fact.battery is not None else ()


@dataclass(frozen=True)
class _Weighed:
    """What the reference says of one adapter; `n` leaves out itself, its owner and its copies."""

    p_value: float | None = None
    reference_id: str | None = None
    n: int = 0


def _weigh(fact: _Facts, reference: Reference | None, policy: Policy) -> _Weighed:
    if reference is None:
        return _Weighed()
    others = reference.others(_sibling(fact.adapter, fact.features))
    return _Weighed(weight_p_value(fact.features, reference, others, policy), reference.reference_id, len(others))


def _sibling(adapter: Row, features: dict[str, float | None]) -> Sibling:
    return Sibling(
        adapter_id=adapter["adapter_id"],
        owner=adapter["owner"] or adapter["repo_uid"],
        content_sha256=adapter["content_sha256"] or adapter["adapter_id"],
        features=features,
    )


def _p(fact: _Facts) -> float:
    return fact.battery.p_value if fact.battery is not None else 1.0


def _load(database: Database, adapter_ids: Sequence[str], policy: Policy) -> dict[str, _Facts]:
    """All rows of some adapters, grouped."""

    def grouped(sql: str) -> dict[str, list[Row]]:
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in database.rows(sql, [list(adapter_ids)]):
            groups[row["adapter_id"]].append(row)
        return groups

    where = "WHERE adapter_id IN (SELECT unnest(?::VARCHAR[]))"
    adapters = grouped(f"SELECT * FROM adapters {where}")
    findings = grouped(f"SELECT * FROM findings {where} ORDER BY rule_id, evidence")
    weights = grouped(f"SELECT * FROM weight_scans {where}")
    probes = grouped(f"SELECT * FROM probe_scans {where} ORDER BY scanned_at")
    rates = grouped(f"SELECT * FROM probe_rates {where} ORDER BY row_id")
    loaded = {}
    for adapter_id in adapter_ids:
        # The newest probe that gave a result; a later one that failed does not undo what was seen.
        probe = max(
            probes[adapter_id],
            key=lambda row: (row["outcome"] == Outcome.PASS, row["scanned_at"]),
            default=None,
        )
        runs = [
            PrefixRun(r["prefix"], r["category"], r["position"], r["answers"])
            for r in rates[adapter_id]
            if probe and r["battery_id"] == probe["battery_id"] and r["scanned_at"] == probe["scanned_at"]
        ]
        usable = probe is not None and probe["outcome"] == Outcome.PASS and runs
        # Null in rows older than these columns: label-words was all there was.
        n_classes = probe["n_classes"] if probe and probe["task_profile"] == SEQUENCE_CLASSIFICATION else None
        loaded[adapter_id] = _Facts(
            adapter=adapters[adapter_id][0],
            findings=_severest_first(findings[adapter_id]),
            features={row["feature"]: row["value"] for row in weights[adapter_id]},
            probe=probe,
            battery=judge_battery(runs, policy.effect_floor, n_classes) if usable else None,
        )
    return loaded


def _severest_first(rows: Iterable[Row]) -> tuple[Finding, ...]:
    found = [
        Finding(r["rule_id"], Severity(r["severity"]), r["message"], r["evidence"], Outcome(r["outcome"])) for r in rows
    ]
    return tuple(sorted(found, key=lambda f: -f.severity.order))


def _key(adapter: Row) -> CalibrationKey | None:
    if adapter["rank"] is None or adapter["outcome"] != Outcome.PASS:
        return None
    return CalibrationKey(
        base_model=adapter["base_model"],
        peft_type=adapter["peft_type"] or "",
        rank=adapter["rank"],
        scaling=adapter["scaling"] or 0.0,
        target_modules=adapter["target_modules"] or "",
        task=adapter["task_type"] or "",
    )


def _references(
    database: Database, facts: Iterable[_Facts], behaving_badly: set[str], policy: Policy
) -> dict[CalibrationKey | None, Reference]:
    """A reference for every calibration key among the judged adapters that has siblings.

    Members come from Hub crawls only, never from folders, and are left out for other evidence than their weights:
    a critical or high static finding, or behaviour. With `unresolved` as base nothing is comparable.
    """
    wanted = {key for fact in facts if (key := _key(fact.adapter)) and key.base_model != "unresolved"}
    if not wanted:
        return {}
    rows = database.rows(
        """
        SELECT a.*, w.features FROM adapters a
        JOIN (SELECT adapter_id, map_from_entries(list((feature, value))) AS features FROM weight_scans GROUP BY 1) w
          USING (adapter_id)
        WHERE a.adapter_id IN (
            SELECT f.adapter_id FROM raw_adapters f JOIN raw_runs r USING (shard_id) WHERE r.crawl_id LIKE 'crawl-%'
          )
          AND a.outcome = 'pass' AND a.base_model IN (SELECT unnest(?::VARCHAR[]))
          AND a.adapter_id NOT IN (SELECT adapter_id FROM findings WHERE severity IN ('critical', 'high'))
          AND a.adapter_id NOT IN (SELECT adapter_id FROM current_verdicts WHERE verdict = 'flagged')
        """,
        [sorted({key.base_model for key in wanted})],
    )
    siblings: dict[CalibrationKey | None, list[Sibling]] = defaultdict(list)
    for row in rows:
        if row["adapter_id"] not in behaving_badly:
            siblings[_key(row)].append(_sibling(row, row["features"]))
    built = {key: build_reference(key, siblings[key], policy) for key in sorted(wanted)}
    return {key: reference for key, reference in built.items() if reference.n}


def _evidence(fact: _Facts, q: float | None, weights: _Weighed) -> Evidence:
    adapter, probe = fact.adapter, fact.probe
    return Evidence(
        outcome=Outcome(adapter["outcome"]),
        reason=adapter["reason"],
        message=adapter["message"],
        findings=fact.findings,
        battery_outcome=Outcome(probe["outcome"]) if probe else None,
        battery_reason=probe["reason"] if probe else "",
        battery=fact.battery,
        q_value=q,
        p_weights=weights.p_value,
        reference_n=weights.n,
        task_profile=adapter["task_profile"],
        base_model=adapter["base_model"],
    )


def _verdict_row(
    fact: _Facts,
    decision: Decision,
    q_value: float | None,
    weights: _Weighed,
    policy: Policy,
    crawl_id: str,
    now: datetime,
) -> Row:
    adapter = fact.adapter
    shared: dict[str, Any] = {
        name: adapter[name]
        for name in ("adapter_id", "repo_id", "repo_uid", "commit_sha", "adapter_path", "base_model", "stage_reached")
    }
    return {
        "row_id": row_id_of("verdicts", adapter["adapter_id"], policy.version, weights.reference_id, crawl_id),
        **shared,
        "verdict": str(decision.verdict),
        "reasons": json.dumps([asdict(reason) for reason in decision.reasons]),
        "p_weights": weights.p_value,
        "p_battery": fact.battery.p_value if fact.battery else None,
        "p_search": None,
        "q_value": q_value,
        "reference_id": weights.reference_id,
        "reference_n": weights.n,
        "policy_version": policy.version,
        "judged_at": now,
        "crawl_id": crawl_id,
    }


def _reference_rows(references: Iterable[Reference], now: datetime) -> list[Row]:
    return [
        {
            "row_id": row_id_of("reference_profiles", reference.reference_id, feature),
            "reference_id": reference.reference_id,
            "calibration_key": reference.key.to_json(),
            "feature": feature,
            "n": reference.n,
            "center": center,
            "spread": reference.spread[feature],
            "members": json.dumps(reference.members),
            "frozen_at": now,
        }
        for reference in references
        for feature, center in reference.center.items()
    ]

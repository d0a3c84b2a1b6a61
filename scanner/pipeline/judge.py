"""Stage 8: verdicts from the store alone. Nothing is downloaded or measured again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from scanner.calibration import (
    CalibrationKey,
    Decision,
    Evidence,
    Level,
    Policy,
    Reference,
    SearchEvidence,
    SearchRank,
    SearchReference,
    StreamTest,
    WeightRank,
    adjust_fdr,
    decide,
    is_beyond_siblings,
    judge_search,
    p_by_itself,
)
from scanner.model import Outcome, ScanRecord
from scanner.pipeline.append import may_add_to
from scanner.pipeline.battery_siblings import rank_batteries
from scanner.pipeline.carry import find_carriers
from scanner.pipeline.judged import JudgedFacts, facts_from_records, facts_from_store
from scanner.pipeline.judgement import Judgement, append_judgement, not_yet_frozen
from scanner.pipeline.kin import find_kin
from scanner.pipeline.search_siblings import SearchKey, find_search_references, rank_search
from scanner.pipeline.siblings import WeightReferences
from scanner.pipeline.streamed import stream_columns, stream_tests
from scanner.store import Database, Row, StoreRoot, open_database, row_id_of

__all__ = ["judge_adapters", "judge_families", "judge_records", "pending_adapters"]


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
        judgement = not_yet_frozen(database, judge_families(database, {crawl_id: adapter_ids}, policy, now))
    finally:
        database.close()
    append_judgement(root, crawl_id, judgement, policy, now)
    return judgement.rows


def judge_records(
    root: StoreRoot, records: Sequence[ScanRecord], crawl_id: str, scanned_at: datetime, policy: Policy, now: datetime
) -> list[Row]:
    """`judge_adapters` for records that were appended a moment ago: the same verdicts.

    The store is opened only where it can know more of them than they say themselves.

    Args:
        root: the store, with the records in it.
        records: of different adapters.
        crawl_id: the scan that they belong to.
        scanned_at: the scan's logical time.
        policy: thresholds.
        now: stored as `judged_at`.

    Raises:
        StoreError: the store cannot be read or written.
    """
    adapter_ids = [record.info.adapter_id for record in records]
    if not records or may_add_to(root, records):
        return judge_adapters(root, adapter_ids, crawl_id, policy, now)
    facts = facts_from_records(records, scanned_at, policy)
    judgement = _judge(facts, {crawl_id: adapter_ids}, None, policy, now)
    append_judgement(root, crawl_id, judgement, policy, now)
    return judgement.rows


def judge_families(
    database: Database,
    families: Mapping[str, Sequence[str]],
    policy: Policy,
    now: datetime,
    run_id: str = "",
    may_place: bool = True,
) -> Judgement:
    """Judge adapters from the store alone; nothing is written.

    Args:
        database: the store.
        families: crawl or scan id -> adapters whose battery's false discovery rate is controlled together.
        policy: thresholds.
        now: stored as `judged_at`.
        run_id: part of each row's identity where an earlier judgement of the same family is to stay.
        may_place: whether adapters get places in the stream: not where some of the rows will not be kept.
    """
    facts = facts_from_store(database, [i for members in families.values() for i in members], policy)
    return _judge(facts, families, database, policy, now, run_id, may_place)


def _judge(
    facts: Mapping[str, JudgedFacts],
    families: Mapping[str, Sequence[str]],
    database: Database | None,
    policy: Policy,
    now: datetime,
    run_id: str = "",
    may_place: bool = True,
) -> Judgement:
    """Verdicts from facts. Without a database there are no siblings."""
    q_values: dict[str, float] = {}
    q_alone: dict[str, float] = {}
    for members in families.values():
        tested = {i: asked for i in members if (asked := facts[i].tested_battery)}
        q_values |= dict(zip(tested, adjust_fdr([one.p_value for one in tested.values()]), strict=True))
        by_itself = [p_by_itself(one, policy) for one in tested.values()]
        q_alone |= dict(zip(tested, adjust_fdr(by_itself), strict=True))
    alone = {i for i, q in q_alone.items() if q <= policy.q}
    behaving_badly = set(alone)
    kin: Mapping[str, frozenset[str]] = {}
    search_references: Mapping[SearchKey, SearchReference] = {}
    if database is not None:
        kin = find_kin(database)
        search_references = find_search_references(database, facts, behaving_badly, kin)
    searched = {i: rank_search(fact, search_references, kin, policy) for i, fact in facts.items() if fact.search}
    searches = {i: judge_search(report, rank, policy) for i, rank in searched.items() if (report := facts[i].search)}
    streamed: Mapping[str, StreamTest] = {}
    weighed = _Weighed()
    if database is not None:
        streamed = stream_tests(database, facts, families, policy, may_place)
        behaving_badly |= {i for i, search in searches.items() if search.flags(policy)}
    # After the searches: what they flag is no sibling here.
    open_facts = {i: fact for i, fact in facts.items() if i not in alone}
    batteries = rank_batteries(database, open_facts, behaving_badly, kin, policy)
    if database is not None:
        behaving_badly |= {
            i
            for i, among in batteries.items()
            if (asked := facts[i].battery) and is_beyond_siblings(asked, q_values.get(i), among, policy)
        }
        weighed = _weigh(database, facts, WeightReferences(database, behaving_badly, kin, policy), policy)
    rows = []
    for crawl_id, members in families.items():
        for adapter_id in members:
            fact, q_value = facts[adapter_id], q_values.get(adapter_id)
            both = (q_value, q_alone.get(adapter_id))
            rank, test = searched.get(adapter_id), streamed.get(adapter_id)
            battery = batteries.get(adapter_id)
            evidence = _evidence(fact, battery, both, test, weighed, searches.get(adapter_id))
            decision = decide(evidence, policy)
            weights = weighed.ranks.get(adapter_id, WeightRank())
            row = _verdict_row(fact, decision, q_value, weights, rank, battery, policy, crawl_id, now)
            row |= stream_columns(test)
            if run_id:
                row["row_id"] = row_id_of("verdicts", row["row_id"], run_id)
            rows.append(row)
    ranks = [rank for rank in (*searched.values(), *batteries.values()) if rank is not None]
    return Judgement(rows, weighed.references, {rank.reference.reference_id: rank.reference for rank in ranks})


@dataclass(frozen=True)
class _Weighed:
    """What siblings say of everybody's weights."""

    ranks: Mapping[str, WeightRank] = field(default_factory=dict)
    carriers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    references: dict[CalibrationKey, Reference] = field(default_factory=dict)


def _weigh(
    database: Database, facts: Mapping[str, JudgedFacts], references: WeightReferences, policy: Policy
) -> _Weighed:
    references.prepare(facts.values())
    ranks = {adapter_id: references.rank(fact) for adapter_id, fact in facts.items()}
    outliers = {i: r.reference for i, r in ranks.items() if r.reference is not None and r.is_outlier(policy)}
    return _Weighed(ranks, find_carriers(database, outliers, policy), references.used)


def _evidence(
    fact: JudgedFacts,
    battery: SearchRank | None,
    q: tuple[float | None, float | None],
    stream: StreamTest | None,
    weighed: _Weighed,
    search: SearchEvidence | None,
) -> Evidence:
    adapter, probe = fact.adapter, fact.probe
    weights = weighed.ranks.get(adapter["adapter_id"], WeightRank())
    return Evidence(
        outcome=Outcome(adapter["outcome"]),
        reason=adapter["reason"],
        message=adapter["message"],
        findings=fact.findings,
        battery_outcome=Outcome(probe["outcome"]) if probe else None,
        battery_reason=probe["reason"] if probe else "",
        battery=fact.battery,
        battery_rank=battery,
        q_value=q[0],
        q_alone=q[1],
        stream=stream,
        p_weights=weights.p_value,
        reference_n=weights.n,
        reference_level=weights.reference.key.level if weights.reference else Level.EXACT,
        most_siblings=max((n for _, n in weights.steps), default=0),
        weight_carriers=weighed.carriers.get(adapter["adapter_id"], ()),
        task_profile=adapter["task_profile"],
        profile_reason=adapter["task_profile_reason"] or "",
        labels=tuple(json.loads(probe["labels"])) if probe and probe["labels"] else (),
        base_model=adapter["base_model"],
        search=search,
        coverage=adapter["coverage"] or 0.0,
    )


def _verdict_row(
    fact: JudgedFacts,
    decision: Decision,
    q_value: float | None,
    weights: WeightRank,
    rank: SearchRank | None,
    battery: SearchRank | None,
    policy: Policy,
    crawl_id: str,
    now: datetime,
) -> Row:
    adapter = fact.adapter
    shared: dict[str, Any] = {
        name: adapter[name]
        for name in ("adapter_id", "repo_id", "repo_uid", "commit_sha", "adapter_path", "base_model", "stage_reached")
    }
    reference_id = weights.reference.reference_id if weights.reference else None
    judged_by = (policy.version, reference_id, *(one.reference.reference_id for one in (rank, battery) if one))
    return {
        "row_id": row_id_of("verdicts", adapter["adapter_id"], *judged_by, crawl_id),
        **shared,
        "verdict": str(decision.verdict),
        "rule": decision.rule_id,
        "reasons": json.dumps([{"code": reason.code, "message": reason.message} for reason in decision.reasons]),
        "p_weights": weights.p_value,
        "p_battery": fact.battery.p_value if fact.battery else None,
        "p_search": rank.p_value if rank else None,
        "q_value": q_value,
        "reference_id": reference_id,
        "reference_n": weights.n,
        "reference_level": str(weights.reference.key.level) if weights.reference else None,
        "reference_steps": json.dumps(weights.steps) if weights.steps else None,
        "policy_version": policy.version,
        "judged_at": now,
        "crawl_id": crawl_id,
        "search_reference_id": rank.reference.reference_id if rank else None,
        "search_reference_n": rank.n if rank else None,
        "p_battery_rank": battery.p_value if battery else None,
        "battery_reference_id": battery.reference.reference_id if battery else None,
        "battery_reference_n": battery.n if battery else None,
    }

"""Whom the search scores of the adapters that are judged are compared with: siblings from the store, or the pooled."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping

from scanner.calibration import (
    BATTERY,
    Policy,
    SearchMember,
    SearchRank,
    SearchReference,
    build_search_reference,
    load_pooled_reference,
    rank_scores,
)
from scanner.model import Outcome, SearchReport
from scanner.pipeline.judged import JudgedFacts
from scanner.pipeline.siblings import MAY_VOTE
from scanner.store import Database, Row

__all__ = ["SearchKey", "find_search_references", "rank_search", "search_key", "sibling"]

SearchKey = tuple[str, str, str]
"""(base model, task profile, plan id): searches whose scores can be compared."""


def search_key(fact: JudgedFacts) -> SearchKey | None:
    """None where there is no score to compare."""
    search = fact.search
    if search is None or search.outcome != Outcome.PASS or not search.scores:
        return None
    return fact.adapter["base_model"], search.task_profile, search.plan_id


def find_search_references(
    database: Database, facts: Mapping[str, JudgedFacts], behaving_badly: set[str], kin: Mapping[str, frozenset[str]]
) -> dict[SearchKey, SearchReference]:
    """A reference for every key among the judged adapters, of siblings that no other evidence than their scores flags.

    Members come from Hub crawls only, never from folders, and are left out for a critical or high static finding, or
    for the battery.

    Args:
        database: the store.
        facts: of the judged adapters; what earlier verdicts say of these does not count.
        behaving_badly: adapters that the battery flags now.
        kin: as of `find_kin`.

    Raises:
        StoreError: a file of the store cannot be read.
    """
    wanted = {key for fact in facts.values() if (key := search_key(fact))}
    if not wanted:
        return {}
    rows = database.rows(
        f"""
        SELECT a.adapter_id, a.owner, a.repo_uid, a.content_sha256, a.base_model, s.task_profile, s.plan_id, s.scores
        FROM adapters a
        JOIN (
          SELECT * FROM trigger_searches WHERE outcome = 'pass' AND scores <> '{{}}'
          QUALIFY row_number() OVER (PARTITION BY adapter_id, plan_id ORDER BY scanned_at DESC, row_id) = 1
        ) s USING (adapter_id)
        WHERE {MAY_VOTE} AND a.outcome = 'pass' AND a.base_model IN (SELECT unnest(?::VARCHAR[]))
        """,
        [sorted({key[0] for key in wanted})],
    )
    flagged = database.rows("SELECT adapter_id, reasons FROM current_verdicts WHERE verdict = 'flagged'")
    behaved_badly = {row["adapter_id"] for row in flagged if _is_by_battery(row["reasons"])} - facts.keys()
    members: dict[SearchKey, list[SearchMember]] = defaultdict(list)
    for row in rows:
        if row["adapter_id"] not in behaving_badly | behaved_badly:
            key = (row["base_model"], row["task_profile"], row["plan_id"])
            members[key].append(sibling(row, json.loads(row["scores"]), kin))
    return {
        (base, profile, plan): build_search_reference(plan, profile, base, members[base, profile, plan])
        for base, profile, plan in sorted(wanted)
        if members[base, profile, plan]
    }


def rank_search(
    fact: JudgedFacts,
    references: Mapping[SearchKey, SearchReference],
    kin: Mapping[str, frozenset[str]],
    policy: Policy,
) -> SearchRank | None:
    """An adapter among its siblings where they are enough, else in the pooled reference."""
    key = search_key(fact)
    if key is None or fact.search is None:
        return None
    judged = sibling(fact.adapter, dict(fact.search.scores), kin)
    reference = references.get(key)
    if reference is not None and len(reference.others(judged)) >= policy.siblings_needed:
        return rank_scores(judged, reference) or pooled_rank(fact.search, judged, policy)
    pooled = pooled_rank(fact.search, judged, policy)
    return pooled or (rank_scores(judged, reference) if reference is not None else None)


def pooled_rank(search: SearchReport, judged: SearchMember, policy: Policy) -> SearchRank | None:
    """None without a pooled reference of this profile and plan."""
    reference = load_pooled_reference(search.task_profile, search.plan_id, judged.base_model, policy.siblings_needed)
    return rank_scores(judged, reference) if reference is not None else None


def sibling(row: Row, scores: Mapping[str, float], kin: Mapping[str, frozenset[str]]) -> SearchMember:
    """A row of `adapters` as a reference sees it."""
    return SearchMember(
        base_model=row["base_model"],
        name=row["adapter_id"],
        scores=scores,
        owner=row["owner"] or row["repo_uid"],
        content_sha256=row["content_sha256"] or row["adapter_id"],
        kin=kin.get(row["adapter_id"], frozenset()),
    )


def _is_by_battery(reasons: str) -> bool:
    return any(reason["code"] == BATTERY for reason in json.loads(reasons))

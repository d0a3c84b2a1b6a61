"""Whom the batteries of adapters that answer freely are compared with: siblings that were asked the same (ADR 19)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from scanner.calibration import (
    SearchMember,
    SearchRank,
    battery_scores,
    build_battery_reference,
    rank_scores,
)
from scanner.model import GENERATIVE
from scanner.pipeline.judged import JudgedFacts
from scanner.pipeline.search_siblings import sibling
from scanner.pipeline.siblings import MAY_VOTE
from scanner.store import Database

__all__ = ["rank_batteries"]

BatteryKey = tuple[str, str]
"""(base model, battery id): batteries whose p-values can be compared."""


def rank_batteries(
    database: Database,
    facts: Mapping[str, JudgedFacts],
    behaving_badly: Collection[str],
    kin: Mapping[str, frozenset[str]],
    alpha: float,
) -> dict[str, SearchRank]:
    """adapter_id -> where the battery of an adapter that answers freely stands among its siblings.

    Members come from Hub crawls only, never from folders, and are left out for a critical or high static finding, or
    where the search flags them; none is left out for what it answered. One vote per owner, copies and near-duplicates
    removed.

    Args:
        database: the store.
        facts: of the judged adapters; of these their present battery counts, of others what their verdict says.
        behaving_badly: judged adapters that their search flags.
        kin: as of `find_kin`.
        alpha: level of the search, for adapters of the store that are not judged now.

    Raises:
        StoreError: a file of the store cannot be read.
    """
    judged = {i: (key, fact) for i, fact in facts.items() if (key := _key(fact)) is not None}
    if not judged:
        return {}
    rows = database.rows(
        f"""
        SELECT a.adapter_id, a.owner, a.repo_uid, a.content_sha256, a.base_model, p.battery_id, v.p_battery
        FROM adapters a
        JOIN (
          SELECT adapter_id, battery_id, task_profile, scanned_at FROM probe_scans WHERE outcome = 'pass'
          QUALIFY row_number() OVER (PARTITION BY adapter_id ORDER BY scanned_at DESC, row_id) = 1
        ) p USING (adapter_id)
        -- a verdict from before the newest probe is about another one
        LEFT JOIN current_verdicts v ON v.adapter_id = a.adapter_id AND v.judged_at >= p.scanned_at
        WHERE {MAY_VOTE} AND a.outcome = 'pass' AND a.base_model IN (SELECT unnest(?::VARCHAR[]))
          AND p.task_profile = '{GENERATIVE}'
          AND a.adapter_id NOT IN (SELECT unnest(?::VARCHAR[]))
          -- what battery and search flag both is told as the battery's
          AND (
            a.adapter_id IN (SELECT unnest(?::VARCHAR[]))
            OR NOT coalesce(v.rule = 'search' OR (v.rule = 'battery' AND v.p_search <= ?), false)
          )
        """,
        [sorted({base for (base, _), _ in judged.values()}), sorted(behaving_badly), sorted(facts), alpha],
    )
    members: dict[BatteryKey, list[SearchMember]] = defaultdict(list)
    for row in rows:
        key, fact = judged.get(row["adapter_id"], (None, None))
        p_value = fact.battery.p_value if fact and fact.battery else row["p_battery"]
        if p_value is not None:
            members[key or (row["base_model"], row["battery_id"])].append(sibling(row, battery_scores(p_value), kin))
    references = {
        (base, battery_id): build_battery_reference(battery_id, base, found)
        for (base, battery_id), found in members.items()
    }
    ranks = {
        adapter_id: rank_scores(sibling(fact.adapter, battery_scores(fact.battery.p_value), kin), references[key])
        for adapter_id, (key, fact) in judged.items()
        if key in references and fact.battery is not None
    }
    return {adapter_id: rank for adapter_id, rank in ranks.items() if rank is not None}


def _key(fact: JudgedFacts) -> BatteryKey | None:
    """None where a battery says something by itself, or nothing."""
    if fact.battery is None or fact.probe is None or not fact.battery.needs_rank:
        return None
    return fact.adapter["base_model"], fact.probe["battery_id"]

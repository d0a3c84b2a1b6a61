"""Whom batteries are compared with: siblings that were asked the same, or the pooled ones (ADRs 19 and 21)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from scanner.calibration import (
    BatteryReference,
    Policy,
    SearchMember,
    SearchRank,
    battery_scores,
    build_battery_reference,
    does_enough,
    load_pooled_batteries,
)
from scanner.model import LABEL_WORDS
from scanner.pipeline.judged import JudgedFacts
from scanner.pipeline.search_siblings import sibling
from scanner.pipeline.siblings import MAY_VOTE
from scanner.store import Database

__all__ = ["rank_batteries"]

BatteryKey = tuple[str, str]
"""(base model, battery id): batteries whose p-values can be compared. The id is of one task profile."""


def rank_batteries(
    database: Database | None,
    facts: Mapping[str, JudgedFacts],
    behaving_badly: Collection[str],
    kin: Mapping[str, frozenset[str]],
    policy: Policy,
) -> dict[str, SearchRank]:
    """adapter_id -> where a battery that does enough, and does not flag by itself, stands: among its siblings where
    they are enough, else in the pooled reference of its base.

    Args:
        database: the store; None: there are no siblings.
        facts: of the judged adapters that their battery does not flag by itself; of these their present battery
            counts, of others what their verdict says.
        behaving_badly: judged adapters that their battery by itself or their search flags.
        kin: as of `find_kin`.
        policy: thresholds.

    Raises:
        StoreError: a file of the store cannot be read.
    """
    judged = {i: (key, fact) for i, fact in facts.items() if (key := _key(fact, policy)) is not None}
    references = _siblings(database, facts, {key for key, _ in judged.values()}, behaving_badly, kin, policy)
    ranks: dict[str, SearchRank] = {}
    for adapter_id, (key, fact) in judged.items():
        if fact.battery is None:
            continue
        one = sibling(fact.adapter, battery_scores(fact.battery.p_value), kin)
        rank = references[key].rank(one) if key in references else None
        if rank is None or rank.n < policy.siblings_needed:
            pooled = load_pooled_batteries(_profile(fact), key[1], key[0], policy.siblings_needed)
            rank = (pooled.rank(one) if pooled else None) or rank
        if rank is not None:
            ranks[adapter_id] = rank
    return ranks


def _siblings(
    database: Database | None,
    facts: Mapping[str, JudgedFacts],
    wanted: Collection[BatteryKey],
    behaving_badly: Collection[str],
    kin: Mapping[str, frozenset[str]],
    policy: Policy,
) -> dict[BatteryKey, BatteryReference]:
    """Members come from Hub crawls only, never from folders, and are left out for a critical or high static finding, or
    where search or battery by itself flag them; none of the others is left out for what it answered. One vote per
    owner, copies and near-duplicates removed."""
    if database is None or not wanted:
        return {}
    rows = database.rows(
        f"""
        SELECT
          a.adapter_id, a.owner, a.repo_uid, a.content_sha256, a.base_model, p.battery_id, p.task_profile, v.p_battery
        FROM adapters a
        JOIN (
          SELECT adapter_id, battery_id, task_profile, scanned_at FROM probe_scans WHERE outcome = 'pass'
          QUALIFY row_number() OVER (PARTITION BY adapter_id ORDER BY scanned_at DESC, row_id) = 1
        ) p USING (adapter_id)
        -- a verdict from before the newest probe is about another one
        LEFT JOIN current_verdicts v ON v.adapter_id = a.adapter_id AND v.judged_at >= p.scanned_at
        WHERE {MAY_VOTE} AND a.outcome = 'pass'
          AND a.base_model IN (SELECT unnest(?::VARCHAR[])) AND p.battery_id IN (SELECT unnest(?::VARCHAR[]))
          AND a.adapter_id NOT IN (SELECT unnest(?::VARCHAR[]))
          -- what battery and search flag both is told as the battery's
          AND (
            a.adapter_id IN (SELECT unnest(?::VARCHAR[]))
            OR NOT coalesce(
              v.rule = 'search' OR (v.rule IN ('battery', 'battery_alone') AND v.q_value IS NOT NULL)
              OR (v.rule IN ('battery', 'ranked_battery') AND v.p_search <= ?),
              false
            )
          )
        """,
        [
            sorted({base for base, _ in wanted}), sorted({battery_id for _, battery_id in wanted}),
            sorted(behaving_badly), sorted(facts), policy.alpha,
        ],
    )  # fmt: skip
    members: dict[BatteryKey, list[SearchMember]] = defaultdict(list)
    profiles: dict[BatteryKey, str] = {}
    for row in rows:
        key, fact = (row["base_model"], row["battery_id"]), facts.get(row["adapter_id"])
        p_value = fact.battery.p_value if fact is not None and fact.battery is not None else row["p_battery"]
        if key in wanted and p_value is not None:
            members[key].append(sibling(row, battery_scores(p_value), kin))
            profiles[key] = row["task_profile"] or LABEL_WORDS
    return {
        (base, battery_id): build_battery_reference(battery_id, profiles[base, battery_id], base, found)
        for (base, battery_id), found in members.items()
    }


def _key(fact: JudgedFacts, policy: Policy) -> BatteryKey | None:
    """None where a battery does nothing."""
    if fact.battery is None or fact.probe is None or not does_enough(fact.battery, policy):
        return None
    return fact.adapter["base_model"], fact.probe["battery_id"]


def _profile(fact: JudgedFacts) -> str:
    return (fact.probe["task_profile"] if fact.probe else None) or LABEL_WORDS

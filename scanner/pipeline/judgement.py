"""Verdicts on their way into the store, with the references that judged them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from scanner.calibration import CalibrationKey, Policy, Reference, SearchReference
from scanner.store import Database, Row, StoreRoot, append_shard, row_id_of, shard_id_of

__all__ = ["Judgement", "append_judgement", "flags_by_chance", "not_yet_frozen"]


@dataclass(frozen=True)
class Judgement:
    """Verdict rows and the references that judged them: of weights by calibration key, of what else is ranked by id."""

    rows: list[Row]
    references: dict[CalibrationKey, Reference]
    search_references: dict[str, SearchReference]


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
        {
            "verdicts": rows,
            "reference_profiles": [
                *_reference_rows(judgement.references.values(), now),
                *_search_reference_rows(judgement.search_references.values(), now),
            ],
        },
        {
            "row_id": row_id_of("runs", shard_id, run_id),
            "run_id": shard_id,
            "kind": "judge",
            "crawl_id": run_id,
            "finished_at": now,
            "n_adapters": len(rows),
            "detail": json.dumps({"policy": asdict(policy), **flags_by_chance(rows, policy)}),
        },
        now,
    )


def not_yet_frozen(database: Database, judgement: Judgement) -> Judgement:
    """Without the references that the store has already: they were frozen when they were built first.

    Raises:
        StoreError: a file of the store cannot be read.
    """
    rows = database.rows("SELECT DISTINCT reference_id FROM reference_profiles")
    frozen = {row["reference_id"] for row in rows}
    return replace(
        judgement,
        references={key: r for key, r in judgement.references.items() if r.reference_id not in frozen},
        search_references={i: r for i, r in judgement.search_references.items() if i not in frozen},
    )


def flags_by_chance(rows: Iterable[Row], policy: Policy) -> dict[str, float]:
    """How many of these adapters a level of `alpha` each lets stand out by chance: by weights, search, free answers.

    Those whose reference is too small to reach the level cannot, and do not count.
    """
    needed = policy.siblings_needed
    ranks = {
        "weight": ("p_weights", "reference_n"),
        "search": ("p_search", "search_reference_n"),
        "battery": ("p_battery_rank", "battery_reference_n"),
    }
    judged = list(rows)
    return {
        f"{kind}_flags_to_expect_by_chance": policy.alpha
        * sum(row[p_value] is not None and (row[n] or 0) >= needed for row in judged)
        for kind, (p_value, n) in ranks.items()
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


def _search_reference_rows(references: Iterable[SearchReference], now: datetime) -> list[Row]:
    return [
        {
            "row_id": row_id_of("reference_profiles", reference.reference_id, key),
            "reference_id": reference.reference_id,
            "calibration_key": json.dumps(
                {
                    "base_models": sorted({member.base_model for member in reference.members}),
                    "plan_id": reference.plan_id,
                    "task_profile": reference.task_profile,
                }
            ),
            "feature": key,
            "n": len(reference.members),
            "center": center,
            "spread": reference.spread[key],
            "members": json.dumps([member.name for member in reference.members]),
            "frozen_at": now,
        }
        for reference in references
        for key, center in reference.center.items()
    ]

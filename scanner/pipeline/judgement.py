"""Verdicts on their way into the store, with the references that judged them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from scanner.calibration import CalibrationKey, Policy, Reference, SearchReference
from scanner.store import Row, StoreRoot, append_shard, row_id_of, shard_id_of

__all__ = ["Judgement", "append_judgement"]


@dataclass(frozen=True)
class Judgement:
    """Verdict rows and the references that judged them: of weights by calibration key, of searches by id."""

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
            "detail": json.dumps(
                {
                    "policy": asdict(policy),
                    "weight_flags_to_expect_by_chance": policy.alpha * len(rows),
                    "search_flags_to_expect_by_chance": policy.alpha * sum(row["p_search"] is not None for row in rows),
                }
            ),
        },
        now,
    )


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

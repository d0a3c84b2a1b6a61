"""Where the names of base models lead: what a crawl or scan leaves for the next ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any

from scanner.model import BaseResolution, BaseStep
from scanner.store.views import Database
from scanner.store.write import Row, row_id_of

__all__ = ["base_rows", "evidence_json", "evidence_of", "remembered_bases"]


def evidence_json(steps: Iterable[BaseStep]) -> str:
    """Steps as the store keeps them."""
    return json.dumps([asdict(step) for step in steps], ensure_ascii=False)


def evidence_of(text: str | None) -> tuple[BaseStep, ...]:
    """The inverse of `evidence_json`; nothing for rows of a version that did not know it."""
    return tuple(BaseStep(step["kind"], step["value"], step["detail"]) for step in json.loads(text or "[]"))


def base_rows(resolutions: Iterable[BaseResolution], *, source: str, crawl_id: str, resolved_at: datetime) -> list[Row]:
    """Rows of `base_resolutions`; a later answer to the same name takes the earlier one's place."""
    return [
        {
            "row_id": row_id_of("base_resolutions", source, found.name),
            "source": source,
            "name": found.name,
            "root": found.root,
            "commit_sha": found.commit_sha,
            "evidence": evidence_json(found.steps),
            "crawl_id": crawl_id,
            "resolved_at": resolved_at,
        }
        for found in resolutions
    ]


def remembered_bases(
    database: Database, source: str, now: datetime, memory_s: float, unknown_memory_s: float
) -> list[BaseResolution]:
    """What earlier crawls and scans of this source found out and is still believed.

    Args:
        database: the store.
        source: `hub:ENDPOINT`.
        now: the present.
        memory_s: how long a confirmed root is believed.
        unknown_memory_s: the same where the Hub did not know the name, or refused.
    """
    parameters: list[Any] = [source, now, memory_s, unknown_memory_s]
    rows = database.rows(
        "SELECT name, root, commit_sha, evidence, resolved_at FROM base_resolutions WHERE source = $1 "
        "AND epoch($2::TIMESTAMPTZ) - epoch(resolved_at) < CASE WHEN commit_sha IS NULL THEN $4 ELSE $3 END "
        "ORDER BY name",
        parameters,
    )
    return [
        BaseResolution(
            row["name"],
            row["root"],
            row["commit_sha"],
            (*evidence_of(row["evidence"]), BaseStep("remembered", row["root"], row["resolved_at"].isoformat())),
        )
        for row in rows
    ]

"""References of the adapters that are judged, from what Hub crawls have put into the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from scanner.calibration import (
    CalibrationKey,
    Carrier,
    Policy,
    Reference,
    Sibling,
    build_reference,
    deviating_modules,
)
from scanner.model import UNRESOLVED, Outcome
from scanner.pipeline.judged import JudgedFacts
from scanner.store import Database, Row

__all__ = ["calibration_key", "find_carriers", "find_references", "sibling_of"]


def calibration_key(adapter: Row) -> CalibrationKey | None:
    """Whom an adapter can be compared with; None: with nobody. It was not read, or its base is not known."""
    if adapter["rank"] is None or adapter["outcome"] != Outcome.PASS or adapter["base_model"] == UNRESOLVED:
        return None
    return CalibrationKey(
        base_model=adapter["base_model"],
        peft_type=adapter["peft_type"] or "",
        rank=adapter["rank"],
        scaling=adapter["scaling"] or 0.0,
        target_modules=adapter["target_modules"] or "",
        task=adapter["task_type"] or "",
    )


def sibling_of(adapter: Row, features: dict[str, float | None]) -> Sibling:
    """An adapter as a reference sees it."""
    return Sibling(
        adapter_id=adapter["adapter_id"],
        owner=adapter["owner"] or adapter["repo_uid"],
        content_sha256=adapter["content_sha256"] or adapter["adapter_id"],
        features=features,
    )


def find_references(
    database: Database, facts: Iterable[JudgedFacts], behaving_badly: set[str], policy: Policy
) -> dict[CalibrationKey, Reference]:
    """A reference for every calibration key among the judged adapters that has siblings.

    Members come from Hub crawls only, never from folders, and are left out for other evidence than their weights:
    a critical or high static finding, or behaviour.

    Raises:
        StoreError: a file of the store cannot be read.
    """
    wanted = {key for fact in facts if (key := calibration_key(fact.adapter))}
    if not wanted:
        return {}
    rows = database.rows(
        """
        SELECT a.*, w.features FROM adapters a
        JOIN (
          SELECT adapter_id, map_from_entries(list((feature, value))) AS features FROM (
            SELECT * FROM weight_scans  -- of a feature that two versions measured, the later value counts
            QUALIFY row_number() OVER (PARTITION BY adapter_id, feature ORDER BY scanned_at DESC, row_id) = 1
          ) GROUP BY 1
        ) w USING (adapter_id)
        WHERE a.adapter_id IN (
            SELECT f.adapter_id FROM raw_adapters f JOIN raw_runs r USING (shard_id) WHERE r.crawl_id LIKE 'crawl-%'
          )
          AND a.outcome = 'pass' AND a.base_model IN (SELECT unnest(?::VARCHAR[]))
          AND a.adapter_id NOT IN (SELECT adapter_id FROM findings WHERE severity IN ('critical', 'high'))
          AND a.adapter_id NOT IN (SELECT adapter_id FROM current_verdicts WHERE verdict = 'flagged')
        """,
        [sorted({key.base_model for key in wanted})],
    )
    siblings: dict[CalibrationKey, list[Sibling]] = defaultdict(list)
    for row in rows:
        key = calibration_key(row)
        if key and row["adapter_id"] not in behaving_badly:
            siblings[key].append(sibling_of(row, row["features"]))
    built = {key: build_reference(key, siblings[key], policy) for key in sorted(wanted)}
    return {key: reference for key, reference in built.items() if reference.n}


def find_carriers(
    database: Database, adapter_id: str, siblings: Iterable[Sibling], policy: Policy
) -> Sequence[Carrier]:
    """The modules in which an adapter deviates most from its siblings, the farthest first.

    Raises:
        StoreError: a file of the store cannot be read.
    """
    members = [sibling.adapter_id for sibling in siblings]
    rows = database.rows(
        "SELECT adapter_id, module, delta_frob FROM module_features "
        "WHERE adapter_id IN (SELECT unnest(?::VARCHAR[])) AND delta_frob IS NOT NULL ORDER BY scanned_at",
        [[adapter_id, *members]],
    )
    sizes: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        sizes[row["adapter_id"]][row["module"]] = row["delta_frob"]
    return deviating_modules(sizes[adapter_id], [sizes[member] for member in members], policy.spread_floor)

"""Building references from the store and judging history again. Nothing is downloaded or measured.

Verdicts that a later reference or policy changes get a new row; the old ones stay.
"""

from __future__ import annotations

import gc
import json
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from scanner.calibration import CalibrationKey, Policy, Reference
from scanner.pipeline.judge import judge_families
from scanner.pipeline.judgement import append_judgement, not_yet_frozen
from scanner.store import Database, Row, StoreRoot, append_shard, open_database, row_id_of

__all__ = ["Calibration", "ReferenceLine", "VerdictChange", "calibrate"]

_KNOWN = ("adapter_id", "repo_id", "adapter_path", "base_model", "crawl_id")
_COMPARED = (
    "verdict", "reasons", "p_weights", "p_battery", "p_search", "q_value", "reference_id", "reference_n",
    "search_reference_id", "search_reference_n", "policy_version", "rule", "reference_level", "reference_steps",
    "stream_index", "p_battery_rank", "battery_reference_id", "battery_reference_n",
)  # fmt: skip


@dataclass(frozen=True)
class ReferenceLine:
    """One reference as it stands now."""

    key: CalibrationKey
    reference_id: str
    n: int
    needs: int
    """Further siblings until a rank p-value can reach alpha; 0 when it can."""
    is_new: bool
    shift: float | None = None
    """Largest move of a centre since the reference of this key before, in spreads of that; None without one."""


@dataclass(frozen=True)
class VerdictChange:
    """One adapter whose verdict is another one now."""

    repo_id: str | None
    adapter_path: str
    base_model: str
    before: str
    after: str
    why: str
    """Code of the deciding reason."""


@dataclass(frozen=True)
class Calibration:
    """What a calibration did."""

    run_id: str
    n_judged: int
    n_written: int
    """Verdict rows that differ from the current ones in anything, the reference included."""
    references: tuple[ReferenceLine, ...]
    changes: tuple[VerdictChange, ...]


def calibrate(root: StoreRoot, now: datetime, policy: Policy | None = None, base: str | None = None) -> Calibration:
    """Freeze the references of the Hub-crawled adapters and judge every current adapter again.

    The family over which the battery's false discovery rate is controlled stays the crawl or scan in which an adapter
    was judged last. Repeating it changes nothing: then only its own row is written to `runs`.

    Args:
        root: the store.
        now: stored as `judged_at` and `frozen_at`.
        policy: thresholds; default the present ones.
        base: only adapters of this base model get new verdicts.

    Raises:
        StoreError: the store cannot be read or written.
    """
    policy = policy or Policy()
    run_id = f"calibrate-{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
    with root.exclusive():  # no crawl judges meanwhile
        database = open_database(root)
        try:
            current = {
                row["adapter_id"]: row
                for row in database.rows(f"SELECT {', '.join((*_KNOWN, *_COMPARED))} FROM current_verdicts")
            }
            wanted = {i for i, row in current.items() if base is None or row["base_model"] == base}
            with _no_collections():
                judged = judge_families(database, _families(current, wanted), policy, now, run_id, base is None)
            unfrozen = not_yet_frozen(database, judged)
            before = _newest_of_keys(database)
        finally:
            database.close()
        changed = [row for row in judged.rows if row["adapter_id"] in wanted and _differs(row, current)]
        named = {row["reference_id"] for row in judged.rows if row["adapter_id"] in wanted}
        references = {
            key: r
            for key, r in judged.references.items()
            if base is None or key.base_model == base or r.reference_id in named
        }
        new = {key: r for key, r in references.items() if key in unfrozen.references}
        searches = {
            i: r
            for i, r in unfrozen.search_references.items()
            if base is None or r.pooled or r.members[0].base_model == base
        }
        if changed or new or searches:
            kept = replace(judged, rows=changed, references=new, search_references=searches)
            append_judgement(root, run_id, kept, policy, now)
        result = Calibration(
            run_id,
            len(wanted),
            len(changed),
            tuple(_line(key, r, policy, key in new, before) for key, r in sorted(references.items())),
            tuple(_changes(changed, current)),
        )
        _append_run(root, result, base, now)
    return result


@contextmanager
def _no_collections() -> Iterator[None]:
    """Judging makes millions of objects and no cycles: looking for some took a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _families(current: dict[str, Row], wanted: set[str]) -> dict[str, list[str]]:
    """Whole families that hold a wanted adapter: a q-value depends on all of its family."""
    members: dict[str, list[str]] = defaultdict(list)
    for adapter_id, row in sorted(current.items()):
        members[row["crawl_id"] or ""].append(adapter_id)
    return {family: ids for family, ids in members.items() if not wanted.isdisjoint(ids)}


def _differs(row: Row, current: dict[str, Row]) -> bool:
    before = current[row["adapter_id"]]
    return any(row[name] != before[name] for name in _COMPARED)


def _newest_of_keys(database: Database) -> dict[tuple[str, str], Row]:
    """(calibration key, feature) -> the newest frozen profile."""
    rows = database.rows(
        "SELECT calibration_key, feature, center, spread FROM reference_profiles WHERE reference_id LIKE 'ref-%' "
        "QUALIFY row_number() OVER (PARTITION BY calibration_key, feature ORDER BY frozen_at DESC, reference_id) = 1"
    )
    return {(row["calibration_key"], row["feature"]): row for row in rows}


def _line(
    key: CalibrationKey,
    reference: Reference,
    policy: Policy,
    is_new: bool,
    before: dict[tuple[str, str], Row],
) -> ReferenceLine:
    former = {feature: before.get((key.to_json(), feature)) for feature in reference.center}
    shifts = [(reference.center[f] - row["center"]) / row["spread"] for f, row in former.items() if row is not None]
    # An adapter is judged by the others: its own vote does not count.
    return ReferenceLine(
        key,
        reference.reference_id,
        reference.n,
        max(0, policy.siblings_needed - (reference.n - 1)),
        is_new,
        max(shifts, key=abs, default=None),
    )


def _changes(rows: Iterable[Row], current: dict[str, Row]) -> Iterable[VerdictChange]:
    for row in rows:
        before = current[row["adapter_id"]]
        if before["verdict"] != row["verdict"]:
            reasons: list[dict[str, Any]] = json.loads(row["reasons"])
            yield VerdictChange(
                before["repo_id"],
                row["adapter_path"],
                row["base_model"],
                before["verdict"],
                row["verdict"],
                reasons[0]["code"] if reasons else "",
            )


def _append_run(root: StoreRoot, result: Calibration, base: str | None, now: datetime) -> None:
    run = {
        "row_id": row_id_of("runs", result.run_id),
        "run_id": result.run_id,
        "kind": "calibrate",
        "crawl_id": result.run_id,
        "base_model": base,
        "finished_at": now,
        "n_adapters": result.n_judged,
        "detail": json.dumps(
            {
                "verdicts_written": result.n_written,
                "verdicts_changed": len(result.changes),
                "references": len(result.references),
                "references_new": sum(line.is_new for line in result.references),
            }
        ),
    }
    append_shard(root, result.run_id, {"runs": [run]}, None, now)

"""Trigger searches as rows, and back: `trigger_searches`, with the local batteries' runs in `probe_rates`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from scanner.model import LABEL_WORDS, Outcome, SearchReport, toward
from scanner.search_model import Example, FoundTrigger
from scanner.store.rates import prefix_run, rate_row
from scanner.store.views import Database
from scanner.store.write import Row, row_id_of

__all__ = ["find_search", "newest_search", "search_rows"]


def search_rows(adapter_id: str, report: SearchReport) -> tuple[list[Row], list[Row]]:
    """(rows of `trigger_searches`, rows of `probe_rates`): one for each trigger, or one that says why there is none."""
    searched = (adapter_id, report.plan_id, report.asked_battery_id, report.base_commit, report.dtype)
    shared: Row = {
        "adapter_id": adapter_id,
        "p_value": report.p_value,
        "seconds": report.seconds,
        "plan_id": report.plan_id,
        "scores": json.dumps(dict(report.scores)),
        "outcome": str(report.outcome),
        "reason": report.reason,
        "device": report.device,
        "dtype": report.dtype,
        "base_commit": report.base_commit,
        "task_profile": report.task_profile,
        "selected_by": report.selected_by,
        "labels": json.dumps(report.labels, ensure_ascii=False) if report.labels else None,
        "n_classes": report.n_classes,
        "total_forward_passes": report.forward_passes,
        "asked_battery_id": report.asked_battery_id,
    }
    if not report.triggers:
        # A later search that failed must not take the place of the result of an earlier one.
        failed = () if report.outcome == Outcome.PASS else (str(report.outcome),)
        row_id = row_id_of("trigger_searches", *searched, *failed)
        return [{"row_id": row_id, **shared, **_NOTHING, "forward_passes": report.forward_passes}], []
    found, rates = [], []
    for trigger in report.triggers:
        battery_id = _local_battery_id(report, trigger)
        found.append(
            {"row_id": row_id_of("trigger_searches", *searched, battery_id), **shared, **_of(trigger, battery_id)}
        )
        measured = (adapter_id, battery_id, report.base_commit, report.dtype)
        rates += [
            rate_row(
                row_id_of("probe_rates", *measured, run.position, run.category, run.prefix),
                adapter_id,
                battery_id,
                run,
                trigger.runs,
            )
            for run in trigger.runs
        ]
    return found, rates


_NOTHING: Row = dict.fromkeys(
    (
        "trigger_text", "position", "direction", "attack_rate", "kind", "label", "searched_text", "n_tokens", "gain",
        "control_gain", "noise_gain", "slope", "n_texts", "control_attack_rate", "battery_id", "tokens",
        "examples",
        "target_class",
    )
)  # fmt: skip


def _of(trigger: FoundTrigger, battery_id: str) -> Row:
    run = trigger.run
    return {
        "trigger_text": trigger.text,
        "position": trigger.position,
        "direction": trigger.label,
        "attack_rate": run.attack_rate if run else None,
        "forward_passes": trigger.forward_passes,
        "kind": trigger.kind,
        "label": trigger.label,
        "searched_text": trigger.searched_text,
        "n_tokens": trigger.n_tokens,
        "gain": trigger.gain,
        "control_gain": trigger.control_gain,
        "noise_gain": trigger.noise_gain,
        "slope": trigger.slope,
        "n_texts": run.n if run else None,
        "control_attack_rate": trigger.worst_control.attack_rate if trigger.worst_control else None,
        "battery_id": battery_id,
        "tokens": json.dumps(trigger.tokens, ensure_ascii=False),
        "examples": json.dumps([asdict(example) for example in trigger.examples], ensure_ascii=False),
        "target_class": trigger.direction,
    }


def _local_battery_id(report: SearchReport, trigger: FoundTrigger) -> str:
    asked = (report.plan_id, report.asked_battery_id, trigger.text, trigger.position, trigger.kind, trigger.direction)
    return f"local-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]}"


def find_search(database: Database, adapter_id: str, plan_id: str, battery_ids: Sequence[str]) -> SearchReport | None:
    """The newest search of an adapter by this plan on one of these batteries' texts that gave a result."""
    rows = database.rows(
        "SELECT * FROM trigger_searches WHERE adapter_id = ? AND plan_id = ? "
        "AND asked_battery_id IN (SELECT unnest(?::VARCHAR[])) AND outcome = 'pass'",
        [adapter_id, plan_id, list(battery_ids)],
    )
    if not rows:
        return None
    local = list({row["battery_id"] for row in rows if row["battery_id"]})
    rates = database.rows(
        "SELECT * FROM probe_rates WHERE adapter_id = ? AND battery_id IN (SELECT unnest(?::VARCHAR[]))",
        [adapter_id, local],
    )
    return newest_search(rows, rates)


def newest_search(rows: Iterable[Row], rates: Iterable[Row]) -> SearchReport | None:
    """One adapter's newest search that gave a result; without any, the newest that failed. None: never searched.

    Args:
        rows: of `trigger_searches`.
        rates: of `probe_rates`; those of other batteries do no harm.
    """
    newest = max(rows, key=_recency, default=None)
    if newest is None:
        return None
    same = [row for row in rows if _recency(row) == _recency(newest) and row["plan_id"] == newest["plan_id"]]
    runs: dict[str, list[Row]] = {row["battery_id"]: [] for row in same if row["battery_id"]}
    for rate in rates:
        if rate["battery_id"] in runs and rate["scanned_at"] == newest["scanned_at"]:
            runs[rate["battery_id"]].append(rate)
    triggers = [_trigger(row, runs[row["battery_id"]]) for row in same if row["trigger_text"] is not None]
    return SearchReport(
        plan_id=newest["plan_id"] or "",
        outcome=Outcome(newest["outcome"]),
        reason=newest["reason"] or "",
        triggers=tuple(sorted(triggers, key=lambda trigger: (-trigger.slope, trigger.kind, trigger.text))),
        scores=tuple(json.loads(newest["scores"] or "{}").items()),
        task_profile=newest["task_profile"] or LABEL_WORDS,
        labels=tuple(json.loads(newest["labels"])) if newest["labels"] else (),
        n_classes=newest["n_classes"],
        forward_passes=newest["total_forward_passes"],
        seconds=newest["seconds"],
        device=newest["device"],
        dtype=newest["dtype"],
        base_commit=newest["base_commit"],
        selected_by=newest["selected_by"],
        asked_battery_id=newest["asked_battery_id"],
        p_value=newest["p_value"],
    )


def _recency(row: Row) -> tuple[bool, object]:
    return (row["outcome"] == Outcome.PASS, row["scanned_at"])


def _trigger(row: Row, rates: Sequence[Row]) -> FoundTrigger:
    runs = tuple(prefix_run(rate) for rate in sorted(rates, key=lambda rate: str(rate["row_id"])))
    direction = row["target_class"]
    return FoundTrigger(
        kind=row["kind"],
        direction=direction,
        label=row["label"],
        text=row["trigger_text"],
        position=row["position"],
        searched_text=row["searched_text"],
        n_tokens=row["n_tokens"],
        gain=row["gain"],
        control_gain=row["control_gain"],
        noise_gain=row["noise_gain"],
        slope=row["slope"],
        tokens=tuple(json.loads(row["tokens"] or "[]")),
        runs=toward(runs, direction) if runs and direction is not None else runs,
        examples=tuple(Example(**example) for example in json.loads(row["examples"] or "[]")),
        forward_passes=row["forward_passes"],
    )

"""The probe's parent: starts children, owns the clock and the memory limit, turns deaths into outcomes.

A child that is killed, hangs or runs out of memory costs the adapter that it was working on; a new child goes on
with the rest, until several in a row have died: then it is the base's fault, and the rest is given up. No torch in this
process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanner.model import (
    GENERATIVE,
    LABEL_WORDS,
    SEQUENCE_CLASSIFICATION,
    Outcome,
    PrefixRun,
    ProbeReport,
    toward,
    worst_class,
)
from scanner.probe.battery import Probe
from scanner.probe.child import ProbeItem, ProbeLimits, next_event, start_child
from scanner.probe.search import SearchPlan
from scanner.search_model import Example, FoundTrigger, SearchReport

__all__ = ["ProbeItem", "ProbeLimits", "run_probe", "run_search"]

MAX_DEATHS_IN_A_ROW = 3
"""A base or template that kills every probe must not cost the time limit once for each adapter."""
GAVE_UP = f"gave_up: {MAX_DEATHS_IN_A_ROW} probes in a row died"
"""Reason of the adapters that were not tried any more: not at once, as after a death, but by the next crawls."""
TOKEN_CLASSIFICATION = "token_classification"
"""Reason of what is not searched."""
_FAILURES = ("oom", "nan_logits", "probe_failed", "base_too_large")
"""Codes of refusals that say nothing of what lorascope can read: outcome error, not unsupported."""


@dataclass(frozen=True)
class _Answer:
    """What became of one adapter: the child's result, or an outcome with its reason."""

    outcome: Outcome = Outcome.PASS
    reason: str = ""
    event: dict[str, Any] | None = None
    device: str = ""
    dtype: str = ""


def run_probe(
    base_dir: Path,
    base_commit: str,
    probe: Probe,
    items: Sequence[ProbeItem],
    limits: ProbeLimits,
    on_report: Callable[[str, ProbeReport], None] | None = None,
) -> dict[str, ProbeReport]:
    """Probe adapters of one base; one report for each, whatever happens.

    Args:
        base_dir: the base model's files.
        base_commit: stored with the result.
        probe: battery, texts, task.
        items: the adapters. Language models, and classifiers of texts and of tokens, have their own children, one
            after the other: they need the base as different models, and two would not fit where one does.
        limits: time, memory and device.
        on_report: called as each report comes in (progress, staging).

    Returns:
        adapter_id -> report, in the order of `items`. `error` reports have reason `crashed`, `timeout` or `memory`
        (callers may try those again), `base_` and one of them when the base never got ready, or `GAVE_UP`.
    """
    reports: dict[str, ProbeReport] = {}

    def report(item: ProbeItem, answer: _Answer) -> None:
        fields: dict[str, Any] = {"outcome": answer.outcome, "reason": answer.reason, "task_profile": item.profile}
        if answer.event is not None:
            fields |= _result(answer.event, probe) | {"seconds": answer.event["seconds"]}
        result = ProbeReport(
            battery=probe.battery.name,
            battery_id=probe.id_for(fields["task_profile"]),
            base_commit=base_commit,
            selected_by=item.selected_by,
            profile_reason=fields.pop("profile_reason", "") or item.profile_reason,
            device=answer.device,
            dtype=answer.dtype,
            **fields,
        )
        reports[item.adapter_id] = result
        if on_report:
            on_report(item.adapter_id, result)

    _run_all(base_dir, probe, items, limits, None, report)
    return {item.adapter_id: reports[item.adapter_id] for item in items}


def run_search(
    base_dir: Path,
    base_commit: str,
    probe: Probe,
    plan: SearchPlan,
    items: Sequence[ProbeItem],
    limits: ProbeLimits,
    on_report: Callable[[str, SearchReport], None] | None = None,
) -> dict[str, SearchReport]:
    """Search for triggers of adapters of one base; one report for each, whatever happens.

    Classifiers of tokens are not searched: `unsupported`. Arguments, order and reasons of failures as of `run_probe`;
    `probe` gives texts, task and neutral strings, `plan` says how hard to look.
    """
    reports: dict[str, SearchReport] = {}

    def report(item: ProbeItem, answer: _Answer) -> None:
        fields: dict[str, Any] = {"outcome": answer.outcome, "reason": answer.reason, "task_profile": item.profile}
        if answer.event is not None:
            fields |= _found(answer.event)
        result = SearchReport(
            plan_id=plan.plan_id,
            asked_battery_id=probe.id_for(fields["task_profile"]),
            base_commit=base_commit,
            selected_by=item.selected_by,
            device=answer.device,
            dtype=answer.dtype,
            **fields,
        )
        reports[item.adapter_id] = result
        if on_report:
            on_report(item.adapter_id, result)

    for item in items:
        if item.per_token:
            report(item, _Answer(Outcome.UNSUPPORTED, TOKEN_CLASSIFICATION))
    _run_all(base_dir, probe, [item for item in items if not item.per_token], limits, plan, report)
    return {item.adapter_id: reports[item.adapter_id] for item in items}


def _run_all(
    base_dir: Path,
    probe: Probe,
    items: Sequence[ProbeItem],
    limits: ProbeLimits,
    plan: SearchPlan | None,
    report: Callable[[ProbeItem, _Answer], None],
) -> None:
    by_model: dict[tuple[bool, bool], list[ProbeItem]] = {}
    for item in items:
        by_model.setdefault((item.profile == SEQUENCE_CLASSIFICATION, item.per_token), []).append(item)
    for of_model in by_model.values():
        _run_model(base_dir, probe, of_model, limits, plan, report)


def _run_model(
    base_dir: Path,
    probe: Probe,
    items: Sequence[ProbeItem],
    limits: ProbeLimits,
    plan: SearchPlan | None,
    tell: Callable[[ProbeItem, _Answer], None],
) -> None:
    told: set[str] = set()

    def report(item: ProbeItem, answer: _Answer) -> None:
        told.add(item.adapter_id)
        tell(item, answer)

    waiting = list(items)
    deaths = 0  # since a child last got through an adapter
    while waiting:
        by_id = {item.adapter_id: item for item in waiting}
        current: ProbeItem | None = None
        device = dtype = ""
        deadline = time.monotonic() + limits.base_timeout_s
        child = start_child(base_dir, probe, waiting[: limits.adapters_per_child], limits, plan)
        try:
            while True:
                event, death = next_event(child, deadline, limits)
                if event is None:
                    if current is None:  # before the first adapter: the base itself cannot be loaded
                        for item in waiting:
                            report(item, _Answer(Outcome.ERROR, f"base_{death}: {child.last_words()}".rstrip(": ")))
                        waiting = []
                    else:
                        if current.adapter_id not in told:  # it may have died between two adapters
                            reason = f"{death}: {child.last_words()}".rstrip(": ")
                            report(current, _Answer(Outcome.ERROR, reason, None, device, dtype))
                        waiting = [item for item in waiting if item.adapter_id not in told]
                        deaths += 1
                        if deaths == MAX_DEATHS_IN_A_ROW:
                            for item in waiting:
                                report(item, _Answer(Outcome.ERROR, GAVE_UP))
                            waiting = []
                    break
                kind = event["event"]
                if kind == "ready":
                    device, dtype = event["device"], event["dtype"]
                elif kind == "base_failed":
                    for item in waiting:
                        report(item, _Answer(*_refusal(event)))
                    waiting = []
                    break
                elif kind == "begin":
                    current = by_id[event["adapter_id"]]
                    deadline = time.monotonic() + limits.adapter_timeout_s
                elif kind == "refused":
                    deaths = 0
                    report(by_id[event["adapter_id"]], _Answer(*_refusal(event), None, device, dtype))
                elif kind == "result":
                    deaths = 0
                    report(by_id[event["adapter_id"]], _Answer(event=event, device=device, dtype=dtype))
                elif kind == "done":
                    waiting = [item for item in waiting if item.adapter_id not in told]
                    break
        finally:
            child.kill()
            child.errors.close()


def _refusal(event: dict[str, Any]) -> tuple[Outcome, str]:
    outcome = Outcome.ERROR if event["code"] in _FAILURES else Outcome.UNSUPPORTED
    return outcome, f"{event['code']}: {event['message']}"[:300]


def _found(event: dict[str, Any]) -> dict[str, Any]:
    """A search report's fields that follow from what the child found."""
    if not all(math.isfinite(score) for _, score in event["scores"]):
        # Nothing can be compared with them, and an adapter must not get out of the comparison in this way.
        return {"outcome": Outcome.ERROR, "reason": "nan_logits: the scores of the search are not finite"}
    return {
        "outcome": Outcome.PASS,
        "reason": event["note"],
        "task_profile": event["profile"],
        "triggers": tuple(_trigger(one) for one in event["triggers"]),
        "scores": tuple((key, float(score)) for key, score in event["scores"]),
        "labels": tuple(event["labels"]),
        "n_classes": event["n_classes"],
        "forward_passes": event["forward_passes"],
        "seconds": event["seconds"],
    }


def _trigger(fields: dict[str, Any]) -> FoundTrigger:
    runs = tuple(PrefixRun(**run) for run in fields["runs"])
    return FoundTrigger(**{**fields, "runs": runs, "examples": tuple(Example(**one) for one in fields["examples"])})


def _result(event: dict[str, Any], probe: Probe) -> dict[str, Any]:
    """A report's fields that follow from the answers."""
    runs = tuple(PrefixRun(*run) for run in event["runs"])
    profile = event["profile"]
    labels = tuple(event.get("labels", ()))
    fields: dict[str, Any] = {
        "task_profile": profile,
        "profile_reason": event.get("profile_reason", ""),
        "reading": event.get("reading", ""),
        "labels": labels,
        "noise_floor": event["noise_floor"],
        "n_texts": len(runs[0].answers),
    }
    if profile == LABEL_WORDS:
        outcome, reason = _usable(runs)
        return fields | {"outcome": outcome, "reason": reason, "runs": runs}
    n_classes = event.get("n_classes", len(labels))
    direction = worst_class(runs, n_classes)
    outcome, reasons = Outcome.PASS, [event.get("note", "")]
    if profile != GENERATIVE and len(set().union(*(run.answers for run in runs))) == 1:
        # Whatever stands before the texts: nothing shows that the head listens to them at all.
        outcome, reasons = Outcome.INCONCLUSIVE, ["constant_answers", *reasons]
    elif profile != GENERATIVE and len(set(_control(runs))) == 1:
        reasons = ["constant_control", *reasons]  # judged all the same: a prefix that breaks it is a prefix that works
    return fields | {
        "outcome": outcome,
        "reason": ": ".join(filter(None, reasons)),
        "runs": toward(runs, direction),
        "n_classes": n_classes,
        "direction": direction,
        "n_attack_texts": len(probe.texts) if profile != GENERATIVE else None,
    }


def _control(runs: Sequence[PrefixRun]) -> str:
    return next(run.answers for run in runs if run.category == "control" and not run.prefix)


def _usable(runs: Sequence[PrefixRun]) -> tuple[Outcome, str]:
    """Whether there is anything that an attack could flip."""
    control = _control(runs)
    if control.count("1") < len(control) / 2:
        # It calls most attack texts harmless before anything is put in front of them: there is little to flip.
        return Outcome.INCONCLUSIVE, "weak_control"
    return Outcome.PASS, ""

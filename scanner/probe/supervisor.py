"""The probe's parent: what its children said of each adapter, or how they died, becomes a report. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scanner.model import GENERATIVE, LABEL_WORDS, Outcome, PrefixRun, ProbeReport, toward, worst_class
from scanner.probe.battery import Probe
from scanner.probe.child import ProbeItem, ProbeLimits
from scanner.probe.lanes import Answer, run_children
from scanner.probe.search import MIN_TEXTS, SearchPlan
from scanner.search_model import Example, FoundTrigger, SearchReport

__all__ = ["ProbeItem", "ProbeLimits", "run_probe", "run_search"]

TOO_FEW_TEXTS = f"too few texts: a search needs {2 * MIN_TEXTS}"
TOKEN_CLASSIFICATION = "token_classification"
"""Reason of what is not searched."""


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

    def report(item: ProbeItem, answer: Answer) -> None:
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

    run_children(base_dir, probe, items, limits, None, report)
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

    def report(item: ProbeItem, answer: Answer) -> None:
        fields: dict[str, Any] = {"outcome": answer.outcome, "reason": answer.reason, "task_profile": item.profile}
        if answer.event is not None:
            fields |= _found(answer.event)
        result = SearchReport(
            plan_id=fields.pop("plan_id", plan.id_for(fields["task_profile"])),
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

    n_texts, n_prompts = len(probe.texts) + len(probe.other_texts), len(probe.prompts)
    is_enough = n_texts >= 2 * MIN_TEXTS or n_prompts >= 2 * plan.leak_prompts
    waiting = []
    for item in items:
        if item.per_token:
            report(item, Answer(Outcome.UNSUPPORTED, TOKEN_CLASSIFICATION))
        elif not is_enough:  # known without loading a base
            report(item, Answer(reason=TOO_FEW_TEXTS))
        else:
            waiting.append(item)
    run_children(base_dir, probe, waiting, limits, plan, report)
    return {item.adapter_id: reports[item.adapter_id] for item in items}


def _found(event: dict[str, Any]) -> dict[str, Any]:
    """A search report's fields that follow from what the child found."""
    if not all(math.isfinite(score) for _, score in event["scores"]):
        # Nothing can be compared with them, and an adapter must not get out of the comparison in this way.
        return {"outcome": Outcome.ERROR, "reason": "nan_logits: the scores of the search are not finite"}
    return {
        "outcome": Outcome.PASS,
        "reason": event["note"],
        "plan_id": event["plan_id"],
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
    examples = tuple(Example(**one) for one in fields["examples"])
    return FoundTrigger(**{**fields, "tokens": tuple(fields["tokens"]), "runs": runs, "examples": examples})


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

"""Stage 6 for one base model: search for triggers on what static rules and battery have left open."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from scanner.calibration import (
    BatteryEvidence,
    Policy,
    SearchMember,
    does_enough,
    judge_behaviour,
    load_pooled_reference,
    p_by_itself,
    rank_scores,
)
from scanner.hub.base_model import BaseFiles, BaseShelf
from scanner.model import Outcome, ScanRecord, SearchReport, Severity, Stage
from scanner.pipeline.behave import FilesOf, ask_group, content_key, is_per_token, probe_limits, profile_of
from scanner.pipeline.choose import weight_deviations
from scanner.policy_file import load_policy
from scanner.probe import Probe, ProbeItem, SearchPlan, run_search
from scanner.settings import Settings

__all__ = ["SearchBudget", "choose_for_search", "contents_searched", "is_open", "search_group", "with_search"]

OUTLIER = 3.5
"""Robust |z| within the group from which on weights point at an adapter (Iglewicz and Hoaglin 1993)."""


def is_open(record: ScanRecord, policy: Policy) -> bool:
    """Whether the battery gave a result, and neither it nor a critical finding decides already."""
    battery = _battery(record, policy)
    if battery is None or record.outcome != Outcome.PASS:
        return False
    is_critical = any(f.severity == Severity.CRITICAL and f.outcome == Outcome.FINDING for f in record.findings)
    # Whether what a string does is unusual only siblings say, later.
    return not is_critical and p_by_itself(battery, policy) > policy.q


def choose_for_search(
    records: Sequence[ScanRecord],
    mode: str,
    budget: int,
    policy: Policy,
    salt: str = "",
    searched: Collection[str] = (),
) -> dict[str, str]:
    """Pick adapters of one base model that are open.

    Args:
        records: the group's records, probed.
        mode: `none` (nobody), `all` (everybody who is open), `auto` (up to `budget` contents: weight outliers, static
            findings and shifts first, then a random draw).
        budget: contents.
        policy: what is open.
        salt: the run's id. Draws depend on it, so that an uploader cannot foresee them and a retry repeats them.
        searched: adapters whose search is known already.

    Returns:
        adapter_id -> why: `all`, `within_budget`, `static`, `shift`, `weights` or `random`.
    """
    if mode == "none":
        return {}
    able = [r for r in records if r.info.adapter_id not in searched and is_open(r, policy)]
    if mode == "all":
        return {r.info.adapter_id: "all" for r in able}
    if len(_contents(able)) <= budget:
        return {r.info.adapter_id: "within_budget" for r in able}
    deviation = weight_deviations([r for r in records if r.weights])
    why = {r.info.adapter_id: _suspicion(r, deviation.get(r.info.adapter_id, 0.0), policy) for r in able}

    def order(record: ScanRecord) -> tuple[bool, str]:
        adapter_id = record.info.adapter_id
        return why[adapter_id] == "random", hashlib.sha256(f"{salt}/{adapter_id}".encode()).hexdigest()

    taken: set[str] = set()
    chosen: dict[str, str] = {}
    for record in sorted(able, key=order):
        key = content_key(record)
        if is_per_token(record) or key in taken or len(taken) < budget:
            chosen[record.info.adapter_id] = why[record.info.adapter_id]
            if not is_per_token(record):  # those are refused at once
                taken.add(key)
    return chosen


class SearchBudget:
    """A run's budget of searches, shared among its groups by their size: what one leaves over goes to those after it.

    Args:
        contents: that may be searched in the whole run (`Settings.search_budget`).
        n_adapters: of the whole run.
    """

    def __init__(self, contents: int, n_adapters: int) -> None:
        self._left, self._waiting = contents, n_adapters

    def share(self, n_adapters: int) -> int:
        """Contents that the next group of so many adapters may have searched."""
        return -(-self._left * n_adapters // max(self._waiting, 1))

    def spend(self, n_adapters: int, contents: int) -> None:
        """That group is done, and so many were."""
        self._left, self._waiting = max(self._left - contents, 0), self._waiting - n_adapters


def contents_searched(records: Sequence[ScanRecord], chosen: Collection[str]) -> int:
    """How much of a budget these take: equal contents are searched once, and those that are refused cost nothing."""
    return len(_contents([r for r in records if r.info.adapter_id in chosen]))


def _contents(records: Sequence[ScanRecord]) -> set[str]:
    return {content_key(record) for record in records if not is_per_token(record)}


def search_group(
    base_model: str,
    records: Sequence[ScanRecord],
    chosen: Mapping[str, str],
    shelf: BaseShelf,
    files: FilesOf,
    probe: Probe,
    plan: SearchPlan,
    settings: Settings,
    on_report: Callable[[str, SearchReport], None] | None = None,
) -> list[ScanRecord]:
    """Search the triggers of `chosen` adapters of one base; the others pass through unchanged.

    Arguments and what happens to copies and without a base: as of `probe_group`. `plan` says how hard to look.
    """

    needed = load_policy(settings.policy).siblings_needed

    def run(base: BaseFiles, items: Sequence[ProbeItem], tell: Callable[[str, SearchReport], None]) -> None:
        limits = replace(probe_limits(settings, base.folder), adapter_timeout_s=settings.search_timeout_s)
        run_search(
            base.folder,
            base.commit_sha,
            probe,
            plan,
            items,
            limits,
            lambda name, report: tell(name, _ranked(report, base_model, needed)),
        )

    def failed(record: ScanRecord, reason: str) -> SearchReport:
        profile = profile_of(record)
        return SearchReport(
            plan.id_for(profile),
            Outcome.ERROR,
            reason[:300],
            task_profile=profile,
            asked_battery_id=probe.id_for(profile),
        )

    reports = ask_group(base_model, records, chosen, shelf, files, settings, run, failed, on_report)
    return [with_search(record, reports.get(record.info.adapter_id)) for record in records]


def with_search(record: ScanRecord, report: SearchReport | None) -> ScanRecord:
    """A record with what its search found."""
    if report is None:
        return record
    stage = Stage.SEARCH if report.outcome == Outcome.PASS else record.stage_reached
    return replace(record, search=report, stage_reached=stage)


def _ranked(report: SearchReport, base_model: str, needed: int) -> SearchReport:
    reference = (
        load_pooled_reference(report.task_profile, report.plan_id, base_model, needed) if report.scores else None
    )
    rank = rank_scores(SearchMember(base_model, "", dict(report.scores)), reference) if reference else None
    return replace(report, p_value=rank.p_value) if rank else report


def _battery(record: ScanRecord, policy: Policy) -> BatteryEvidence | None:
    probe = record.probe
    if probe is None or probe.outcome != Outcome.PASS or not probe.runs:
        return None
    return judge_behaviour(
        probe.runs,
        policy,
        probe.task_profile,
        n_classes=probe.n_classes,
        n_attack_texts=probe.n_attack_texts,
        labels=probe.labels,
    )


def _suspicion(record: ScanRecord, deviation: float, policy: Policy) -> str:
    if any(f.severity.order >= Severity.MEDIUM.order for f in record.findings):
        return "static"
    battery = _battery(record, policy)
    if battery is not None and (battery.shifts or does_enough(battery, policy)):
        return "shift"
    return "weights" if deviation >= OUTLIER else "random"

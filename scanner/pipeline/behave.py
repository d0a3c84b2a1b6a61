"""Stage 5 for one base model: fetch the base once, probe the chosen adapters, put the reports into the records."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from scanner.errors import LorascopeError, StopError, UnsupportedError
from scanner.hub.base_model import BaseFiles, BaseShelf
from scanner.hub.sources import RepoFiles
from scanner.model import LABEL_WORDS, Outcome, ProbeReport, ScanRecord, SearchReport, Stage
from scanner.pipeline.collect import fetch_again
from scanner.probe import Probe, ProbeItem, ProbeLimits, run_probe
from scanner.settings import Settings

__all__ = [
    "SMALL_BASE_BYTES",
    "FilesOf",
    "ask_group",
    "content_key",
    "is_per_token",
    "probe_group",
    "probe_limits",
    "profile_of",
    "with_report",
]

Report = TypeVar("Report", ProbeReport, SearchReport)

SMALL_BASE_BYTES = 40 * 10**6
"""At most 20 million parameters of two bytes: the child computes on one core (`scanner.probe.base`)."""

FilesOf = Callable[[ScanRecord], RepoFiles]


def probe_limits(settings: Settings, base_dir: Path) -> ProbeLimits:
    """The supervisor's share of the settings, for one base."""
    children = 1
    if _is_small(base_dir):
        children = settings.probe_children if settings.probe_children > 0 else len(os.sched_getaffinity(0))
    return ProbeLimits(
        device=settings.device,
        dtype=settings.dtype,
        base_timeout_s=settings.base_timeout_s,
        adapter_timeout_s=settings.probe_timeout_s,
        memory_bytes=settings.probe_memory_bytes // children,
        max_config_bytes=settings.max_config_bytes,
        max_rank=settings.max_rank,
        adapters_per_child=settings.probe_adapters_per_child,
        children=children,
    )


def _is_small(base_dir: Path) -> bool:
    return sum(path.stat().st_size for path in base_dir.glob("*.safetensors")) <= SMALL_BASE_BYTES


def probe_group(
    base_model: str,
    records: Sequence[ScanRecord],
    chosen: Mapping[str, str],
    shelf: BaseShelf,
    files: FilesOf,
    probe: Probe,
    settings: Settings,
    on_report: Callable[[str, ProbeReport], None] | None = None,
) -> list[ScanRecord]:
    """Probe `chosen` adapters of one base; the others pass through unchanged.

    Adapters of the same content are asked once, and all get the answer. A base that cannot be had gives every chosen
    adapter the same outcome with its reason: the weight scan of these adapters stands by itself.

    Args:
        base_model: its Hub id.
        records: the group.
        chosen: adapter_id -> why.
        shelf: where the base comes from.
        files: where the files of a record come from that are not (or no longer) on this machine.
        probe: what is asked.
        settings: limits.
        on_report: called as each report comes in.
    """

    def run(base: BaseFiles, items: Sequence[ProbeItem], tell: Callable[[str, ProbeReport], None]) -> None:
        run_probe(base.folder, base.commit_sha, probe, items, probe_limits(settings, base.folder), tell)

    def failed(record: ScanRecord, reason: str) -> ProbeReport:
        return _failed(probe, profile_of(record), reason)

    reports = ask_group(base_model, records, chosen, shelf, files, settings, run, failed, on_report)
    return [with_report(record, reports.get(record.info.adapter_id)) for record in records]


def ask_group(
    base_model: str,
    records: Sequence[ScanRecord],
    chosen: Mapping[str, str],
    shelf: BaseShelf,
    files: FilesOf,
    settings: Settings,
    run: Callable[[BaseFiles, Sequence[ProbeItem], Callable[[str, Report], None]], None],
    failed: Callable[[ScanRecord, str], Report],
    on_report: Callable[[str, Report], None] | None,
) -> dict[str, Report]:
    """adapter_id -> report, for everyone who was chosen; one adapter for each content goes to `run`.

    Args as of `probe_group`, and:
        run: asks adapters on a base, and tells each report.
        failed: the report of an adapter that cannot be asked for this reason.
    """
    by_content: dict[str, list[ScanRecord]] = {}
    for record in records:
        if record.info.adapter_id in chosen:
            by_content.setdefault(content_key(record), []).append(record)
    reports: dict[str, Report] = {}
    if not by_content:
        return reports

    def report_all(key: str, report: Report) -> None:
        for record in by_content[key]:
            own = replace(report, selected_by=chosen[record.info.adapter_id])
            reports[record.info.adapter_id] = own
            if on_report:
                on_report(record.info.adapter_id, own)

    leaders = {group[0].info.adapter_id: key for key, group in by_content.items()}
    try:
        base = shelf.get(base_model)
    except UnsupportedError as error:
        for key, group in by_content.items():
            report_all(key, failed(group[0], f"{error.code}: {error.message}"))
        return reports
    items = []
    for key in leaders.values():
        leader = by_content[key][0]
        try:
            items.append(_item(leader, files, chosen, settings))
        except StopError:
            raise
        except LorascopeError as error:
            report_all(key, failed(leader, f"weights_unavailable: {error.message}"))
    run(base, items, lambda adapter_id, report: report_all(leaders[adapter_id], report))
    return reports


def content_key(record: ScanRecord) -> str:
    """The same weights under the same config answer the same."""
    info = record.info
    return f"{info.content_sha256}/{info.config_sha256}" if info.content_sha256 else info.adapter_id


def _item(record: ScanRecord, files: FilesOf, chosen: Mapping[str, str], settings: Settings) -> ProbeItem:
    if record.local_path is None:
        record = fetch_again(record, files(record), settings)
    adapter_id = record.info.adapter_id
    return ProbeItem(
        adapter_id,
        str(record.local_path),
        record.config_path,
        chosen[adapter_id],
        profile_of(record),
        record.info.profile_reason,
        is_per_token(record),
        record.info.adapter_path,
        record.more_local_paths,
    )


def is_per_token(record: ScanRecord) -> bool:
    """Whether it classifies tokens rather than texts."""
    return (record.info.task_type or "").upper() == "TOKEN_CLS"


def profile_of(record: ScanRecord) -> str:
    """How it is asked."""
    return record.info.task_profile or LABEL_WORDS


def _failed(probe: Probe, profile: str, reason: str) -> ProbeReport:
    return ProbeReport(
        battery=probe.battery.name,
        battery_id=probe.id_for(profile),
        outcome=Outcome.ERROR,
        reason=reason[:300],
        task_profile=profile,
    )


def with_report(record: ScanRecord, report: ProbeReport | None) -> ScanRecord:
    """A record with what its probe saw: where it was asked, that says how it answers."""
    if report is None:
        return record
    if not report.runs:
        return replace(record, probe=report)
    info = replace(record.info, task_profile=report.task_profile, profile_reason=report.profile_reason)
    return replace(record, info=info, probe=report, stage_reached=Stage.BATTERY)

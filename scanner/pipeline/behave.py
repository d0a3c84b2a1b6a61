"""Stage 5 for one base model: fetch the base once, probe the chosen adapters, put the reports into the records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from scanner.errors import HubUnreachableError, SkipError, TransientError
from scanner.model import LABEL_WORDS, Outcome, ProbeReport, ScanRecord, Stage
from scanner.probe import Probe, ProbeItem, ProbeLimits, run_probe
from scanner.settings import Settings

if TYPE_CHECKING:
    from scanner.hub.client import HubClient

__all__ = ["probe_group", "probe_limits"]


def probe_limits(settings: Settings) -> ProbeLimits:
    """The supervisor's share of the settings."""
    return ProbeLimits(
        device=settings.device,
        base_timeout_s=settings.base_timeout_s,
        adapter_timeout_s=settings.probe_timeout_s,
        memory_bytes=settings.probe_memory_bytes,
        max_config_bytes=settings.max_config_bytes,
        max_rank=settings.max_rank,
    )


def probe_group(
    base_model: str,
    records: Sequence[ScanRecord],
    chosen: Mapping[str, str],
    client: Callable[[], HubClient],
    probe: Probe,
    settings: Settings,
    on_report: Callable[[str, ProbeReport], None] | None = None,
) -> list[ScanRecord]:
    """Probe `chosen` adapters of one base; the others pass through unchanged. `client` is called when it is needed.

    A base that cannot be had gives every chosen adapter the same outcome with its reason; an unreachable Hub too,
    because the weight scan of these adapters stands by itself.
    """
    items = [
        ProbeItem(
            r.info.adapter_id,
            str(r.local_path),
            r.config_path,
            chosen[r.info.adapter_id],
            r.info.task_profile or LABEL_WORDS,
        )
        for r in records
        if r.info.adapter_id in chosen
    ]
    if not items:
        return list(records)
    from scanner.hub.base_model import fetch_base

    try:
        base_dir, base_commit = fetch_base(client(), base_model)
    except (SkipError, TransientError, HubUnreachableError) as error:
        reports = _no_base(items, probe, f"base_unavailable: {error.message}")
    else:
        reports = run_probe(base_dir, base_commit, probe, items, probe_limits(settings), on_report)
    return [_with_report(record, reports.get(record.info.adapter_id)) for record in records]


def _no_base(items: Sequence[ProbeItem], probe: Probe, reason: str) -> dict[str, ProbeReport]:
    return {
        item.adapter_id: ProbeReport(
            battery=probe.battery.name,
            battery_id=probe.id_for(item.profile),
            outcome=Outcome.ERROR,
            reason=reason[:300],
            n_texts=len(probe.texts_for(item.profile)),
            selected_by=item.selected_by,
            task_profile=item.profile,
        )
        for item in items
    }


def _with_report(record: ScanRecord, report: ProbeReport | None) -> ScanRecord:
    if report is None:
        return record
    stage = Stage.BATTERY if report.runs else record.stage_reached
    return replace(record, probe=report, stage_reached=stage)

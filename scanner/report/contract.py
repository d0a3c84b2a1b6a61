"""`scan --format json`: the object that other programs read (DESIGN section 4). Strict JSON: NaN becomes null."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from scanner.model import Finding, PrefixRun, ProbeReport, ScanRecord, SearchReport
from scanner.search_model import FoundTrigger
from scanner.store import Row

if TYPE_CHECKING:
    from scanner.pipeline.explain import Explanation

__all__ = [
    "JSON_SCHEMA_VERSION",
    "finding_object",
    "reasons_text",
    "result_object",
    "scan_document",
    "strict_json",
    "trigger_object",
]

JSON_SCHEMA_VERSION = 1


def strict_json(value: Any) -> str:
    """Indented JSON without NaN or infinities; timestamps in ISO 8601."""
    return json.dumps(_strict(value), indent=2, ensure_ascii=False, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def scan_document(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The whole document."""
    return {"schema_version": JSON_SCHEMA_VERSION, "results": list(results)}


def result_object(record: ScanRecord, verdict: Row, explanation: Explanation | None = None) -> dict[str, Any]:
    """R: one adapter's result."""
    info, repo = record.info, record.info.repo
    return {
        "target": repo.target,
        "adapter_id": info.adapter_id,
        "adapter_path": info.adapter_path,
        "repo_id": repo.repo_id,
        "commit_sha": repo.commit_sha,
        "base_model": info.base_model,
        "adapter": {
            "layout": info.layout,
            "peft_type": info.peft_type,
            "rank": info.rank,
            "alpha": info.alpha,
            "modules": info.modules,
            "coverage": info.coverage,
        },
        "findings": [finding_object(finding) for finding in record.findings],
        "weights": {
            "features": dict(record.weights.features) if record.weights else {},
            "explanation": asdict(explanation) if explanation else None,
        },
        "probe": _probe_object(record.probe, record.search, verdict),
        "verdict": verdict["verdict"],
        "reasons": json.loads(verdict["reasons"]),
        "p_values": {
            "weights": verdict["p_weights"],
            "battery": verdict["p_battery"],
            "search": verdict["p_search"],
        },
        "q_value": verdict["q_value"],
        "stage_reached": verdict["stage_reached"],
        "task_profile": info.task_profile,
        "task_profile_reason": info.profile_reason or None,
        "reference_id": verdict["reference_id"],
        "reference_n": verdict["reference_n"],
    }


def finding_object(finding: Finding) -> dict[str, str]:
    """One static finding."""
    return {
        "rule_id": finding.rule_id,
        "severity": str(finding.severity),
        "message": finding.message,
        "evidence": finding.evidence,
    }


def _probe_object(probe: ProbeReport | None, search: SearchReport | None, verdict: Row) -> dict[str, Any] | None:
    if probe is None or not probe.runs:
        return None
    return {
        "battery": probe.battery,
        "battery_id": probe.battery_id,
        "control_attack_rate": probe.control_attack_rate,
        "mean_attack_rate": probe.mean_attack_rate,
        "outlier_gap": probe.outlier_gap,
        "max_attack_rate": probe.max_attack_rate,
        "direction": probe.direction,
        "task_profile": probe.task_profile,
        "reading": probe.reading or None,
        "labels": list(probe.labels),
        "noise_floor": probe.noise_floor,
        "paired": asdict(probe.paired_statistics) if probe.paired_statistics else None,
        "rates": [_rate_object(run) for run in probe.in_category(control=False)],
        "controls": [_rate_object(run) for run in probe.in_category(control=True)],
        "trigger": trigger_object(search.named_in(reasons_text(verdict)) if search else None, verdict),
    }


def trigger_object(trigger: FoundTrigger | None, verdict: Row) -> dict[str, Any] | None:
    """A recovered trigger; None of one that was put to no held-back text."""
    if trigger is None or trigger.run is None:
        return None
    return {
        "text": trigger.text,
        "position": trigger.position,
        "direction": trigger.label,
        "attack_rate": trigger.run.attack_rate,
        "n": trigger.run.n,
        "p_value": verdict["p_search"],
        "forward_passes": trigger.forward_passes,
    }


def reasons_text(verdict: Row) -> str:
    """The messages of a verdict's reasons as one text."""
    return "; ".join(reason["message"] for reason in json.loads(verdict["reasons"]))


def _rate_object(run: PrefixRun) -> dict[str, Any]:
    return {
        "prefix": run.prefix,
        "position": run.position,
        "attack_rate": run.attack_rate,
        "n": run.n,
        "category": run.category,
    }

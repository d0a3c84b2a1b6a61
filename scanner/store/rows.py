"""From scan records to rows of the fact tables."""

from __future__ import annotations

import json
from collections.abc import Iterable

from scanner.model import ScanRecord
from scanner.store.bases import evidence_json
from scanner.store.rates import rate_row
from scanner.store.searches import search_rows
from scanner.store.write import Row, row_id_of

__all__ = ["record_rows"]


def record_rows(records: Iterable[ScanRecord]) -> dict[str, list[Row]]:
    """Rows per table. A row's id follows from what it describes, so scanning again writes the same ids."""
    rows: dict[str, list[Row]] = {
        name: []
        for name in (
            "adapters",
            "findings",
            "weight_scans",
            "module_features",
            "weight_sketches",
            "probe_scans",
            "probe_rates",
            "trigger_searches",
        )
    }
    for record in records:
        _adapter(rows, record)
        _findings(rows, record)
        _weights(rows, record)
        _sketch(rows, record)
        _probe(rows, record)
        _search(rows, record)
    return rows


def _adapter(rows: dict[str, list[Row]], record: ScanRecord) -> None:
    info, repo = record.info, record.info.repo
    rows["adapters"].append(
        {
            "row_id": row_id_of("adapters", info.adapter_id),
            "adapter_id": info.adapter_id,
            "repo_id": repo.repo_id,
            "repo_uid": repo.repo_uid,
            "commit_sha": repo.commit_sha,
            "adapter_path": info.adapter_path,
            "owner": repo.owner,
            "base_model": info.base_model,
            "layout": info.layout,
            "peft_type": info.peft_type,
            "rank": info.rank,
            "alpha": info.alpha,
            "task_profile": info.task_profile,
            "coverage": info.coverage,
            "content_sha256": info.content_sha256,
            "source": repo.source,
            "base_model_claimed": info.base_model_claimed,
            "scaling": info.scaling,
            "target_modules": ",".join(info.target_modules),
            "modules": info.modules,
            "size_bytes": info.size_bytes,
            "task_type": info.task_type,
            "outcome": str(record.outcome),
            "reason": record.reason,
            "message": record.message,
            "stage_reached": str(record.stage_reached),
            "created_at": repo.created_at,
            "last_modified": repo.last_modified,
            "config_sha256": info.config_sha256,
            "copied_from": info.copied_from,
            "detectors": info.detectors,
            "gated": repo.gated,
            "disabled": repo.disabled,
            "downloads": repo.downloads,
            "likes": repo.likes,
            "unfinished": record.is_unfinished,
            "base_evidence": evidence_json(info.base_evidence),
            "task_profile_reason": info.profile_reason,
        }
    )


def _findings(rows: dict[str, list[Row]], record: ScanRecord) -> None:
    adapter_id = record.info.adapter_id
    for finding in record.findings:
        rows["findings"].append(
            {
                "row_id": row_id_of("findings", adapter_id, finding.rule_id, finding.message, finding.evidence),
                "adapter_id": adapter_id,
                "rule_id": finding.rule_id,
                "severity": str(finding.severity),
                "outcome": str(finding.outcome),
                "message": finding.message,
                "evidence": finding.evidence,
            }
        )


def _weights(rows: dict[str, list[Row]], record: ScanRecord) -> None:
    adapter_id, weights = record.info.adapter_id, record.weights
    if weights is None:
        return
    for name, value in weights.features.items():
        rows["weight_scans"].append(
            {
                "row_id": row_id_of("weight_scans", adapter_id, name, weights.version),
                "adapter_id": adapter_id,
                "feature": name,
                "value": value,
                "version": weights.version,
            }
        )
    for module in weights.modules:
        rows["module_features"].append(
            {
                "row_id": row_id_of("module_features", adapter_id, module.module, weights.version),
                "adapter_id": adapter_id,
                "module": module.module,
                "rank": module.rank,
                "out_features": module.out_features,
                "in_features": module.in_features,
                "version": weights.version,
                "layer": module.layer,
                **module.features,
            }
        )


def _sketch(rows: dict[str, list[Row]], record: ScanRecord) -> None:
    info, sketch = record.info, record.weights.sketch if record.weights else None
    if sketch is None:
        return
    rows["weight_sketches"].append(
        {
            "row_id": row_id_of("weight_sketches", info.adapter_id, sketch.version),
            "adapter_id": info.adapter_id,
            "base_model": info.base_model,
            "version": sketch.version,
            "norm": sketch.norm,
            "effective_size": sketch.effective_size,
            "reason": sketch.reason,
            "sketch": sketch.values or None,
        }
    )


def _probe(rows: dict[str, list[Row]], record: ScanRecord) -> None:
    adapter_id, probe = record.info.adapter_id, record.probe
    if probe is None:
        return
    raw, paired = probe.statistics, probe.paired_statistics
    measured = (adapter_id, probe.battery_id, probe.base_commit, probe.dtype)
    # A later probe that failed must not take the place of the result of an earlier one.
    failed = () if probe.runs else (str(probe.outcome),)
    rows["probe_scans"].append(
        {
            "row_id": row_id_of("probe_scans", *measured, *failed),
            "adapter_id": adapter_id,
            "battery_id": probe.battery_id,
            "n_texts": probe.n_texts,
            "control_attack_rate": probe.control_attack_rate,
            "mean_attack_rate": probe.mean_attack_rate,
            "outlier_gap": probe.outlier_gap,
            "max_attack_rate": probe.max_attack_rate,
            "outcome": str(probe.outcome),
            "reason": probe.reason,
            "device": probe.device,
            "dtype": probe.dtype,
            "seconds": probe.seconds,
            "battery": probe.battery,
            "base_commit": probe.base_commit,
            "selected_by": probe.selected_by,
            "task_profile": probe.task_profile,
            "n_classes": probe.n_classes,
            "direction": probe.direction,
            "n_attack_texts": probe.n_attack_texts,
            "task_profile_reason": probe.profile_reason,
            "reading": probe.reading or None,
            "labels": json.dumps(probe.labels, ensure_ascii=False) if probe.labels else None,
            "noise_floor": probe.noise_floor,
            "top3_mean": raw.top3 if raw else None,
            "paired_mean_attack_rate": paired.mean if paired else None,
            "paired_outlier_gap": paired.gap if paired else None,
            "paired_max_attack_rate": paired.max if paired else None,
            "paired_top3_mean": paired.top3 if paired else None,
            "inclusion_probability": probe.inclusion,
        }
    )
    for run in probe.runs:
        row_id = row_id_of("probe_rates", *measured, run.position, run.prefix)
        rows["probe_rates"].append(rate_row(row_id, adapter_id, probe.battery_id, run, probe.runs))


def _search(rows: dict[str, list[Row]], record: ScanRecord) -> None:
    if record.search is None:
        return
    found, rates = search_rows(record.info.adapter_id, record.search)
    rows["trigger_searches"] += found
    rows["probe_rates"] += rates

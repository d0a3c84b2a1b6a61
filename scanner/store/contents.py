"""Finding earlier scans by content: the same weights under the same config are not measured twice.

A crawl asks for every adapter, so the question must be cheap: a sorted array of the first 64 bits of every stored
checksum answers nearly always, and the store itself is asked only where that says "perhaps".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scanner.model import (
    LABEL_WORDS,
    AdapterInfo,
    Finding,
    ModuleFeatures,
    Outcome,
    ProbeReport,
    RepoRef,
    ScanRecord,
    Severity,
    Stage,
    WeightScan,
    WeightSketch,
    toward,
)
from scanner.store.bases import evidence_of
from scanner.store.rates import prefix_run
from scanner.store.schema import WEIGHT_MODULE_FEATURES
from scanner.store.views import Database
from scanner.store.write import Row

__all__ = ["ContentIndex", "find_probe", "find_scanned", "write_content_index"]


def write_content_index(database: Database, detectors: str, path: Path) -> int:
    """Save the checksums of all contents that these detectors have measured; returns how many."""
    rows = database.rows(
        "SELECT DISTINCT content_sha256 FROM raw_adapters WHERE outcome = 'pass' AND detectors = ? "
        "AND copied_from IS NULL AND regexp_full_match(content_sha256, '[0-9a-f]{64}')",
        [detectors],
    )
    values = np.array([_key(row["content_sha256"]) for row in rows], dtype=np.uint64)
    with path.open("wb") as stream:
        np.save(stream, np.sort(values))
    return len(values)


class ContentIndex:
    """The saved checksums, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self._keys = np.load(path, mmap_mode="r")

    def may_hold(self, sha256: str) -> bool:
        """False: certainly not in the store."""
        key = np.uint64(_key(sha256))
        at = int(np.searchsorted(self._keys, key))
        return at < len(self._keys) and self._keys[at] == key


def _key(sha256: str) -> int:
    return int(sha256[:16], 16)


def find_scanned(database: Database, content_sha256: str, config_sha256: str, detectors: str) -> ScanRecord | None:
    """The newest scan of this content by these detectors, from the store alone; without its probe."""
    found = database.rows(
        "SELECT * FROM adapters WHERE content_sha256 = ? AND coalesce(config_sha256, '') = ? AND detectors = ? "
        "AND outcome = 'pass' AND source LIKE 'hub:%' ORDER BY copied_from NULLS FIRST, scanned_at DESC LIMIT 1",
        [content_sha256, config_sha256, detectors],
    )
    if not found:
        return None
    adapter_id = found[0]["adapter_id"]

    def rows(table: str) -> list[Row]:
        return database.rows(f"SELECT * FROM {table} WHERE adapter_id = ? ORDER BY row_id", [adapter_id])

    weights = _weights(rows("weight_scans"), rows("module_features"), rows("weight_sketches"))
    if weights is None:
        return None
    return ScanRecord(
        info=_info(found[0]),
        outcome=Outcome.PASS,
        reason="",
        message="",
        stage_reached=Stage.WEIGHTS,
        findings=tuple(
            Finding(r["rule_id"], Severity(r["severity"]), r["message"], r["evidence"], Outcome(r["outcome"]))
            for r in rows("findings")
        ),
        weights=weights,
    )


def find_probe(database: Database, adapter_id: str, battery_ids: Sequence[str]) -> ProbeReport | None:
    """The newest probe of an adapter that gave a result to one of these very batteries."""
    found = database.rows(
        "SELECT * FROM probe_scans WHERE adapter_id = ? AND battery_id IN (SELECT unnest(?::VARCHAR[])) "
        "AND outcome = 'pass' ORDER BY scanned_at DESC LIMIT 1",
        [adapter_id, list(battery_ids)],
    )
    if not found:
        return None
    row = found[0]
    rates = database.rows(
        "SELECT * FROM probe_rates WHERE adapter_id = ? AND battery_id = ? AND scanned_at = ? ORDER BY row_id",
        [adapter_id, row["battery_id"], row["scanned_at"]],
    )
    if not rates:
        return None
    runs = tuple(prefix_run(rate) for rate in rates)
    return ProbeReport(
        battery=row["battery"],
        battery_id=row["battery_id"],
        outcome=Outcome.PASS,
        reason=row["reason"] or "",
        runs=runs if row["direction"] is None else toward(runs, row["direction"]),
        n_texts=row["n_texts"],
        device=row["device"],
        dtype=row["dtype"],
        seconds=row["seconds"],
        base_commit=row["base_commit"],
        selected_by=row["selected_by"],
        task_profile=row["task_profile"] or LABEL_WORDS,
        profile_reason=row["task_profile_reason"] or "",
        reading=row["reading"] or "",
        labels=tuple(json.loads(row["labels"])) if row["labels"] else (),
        noise_floor=row["noise_floor"],
        n_classes=row["n_classes"],
        direction=row["direction"],
        n_attack_texts=row["n_attack_texts"],
    )


def _weights(features: list[Row], modules: list[Row], sketches: list[Row]) -> WeightScan | None:
    versions = {row["version"] for row in features}
    if len(versions) != 1:
        return None
    return WeightScan(
        features={row["feature"]: row["value"] for row in features},
        modules=tuple(
            ModuleFeatures(
                row["module"],
                row["rank"],
                row["out_features"],
                row["in_features"],
                {name: row[name] for name in WEIGHT_MODULE_FEATURES},
                row["layer"],
            )
            for row in modules
        ),
        version=versions.pop(),
        sketch=_sketch(max(sketches, key=lambda row: row["scanned_at"])) if sketches else None,
    )


def _sketch(row: Row) -> WeightSketch:
    values = tuple(row["sketch"] or ())
    return WeightSketch(values, row["norm"], row["effective_size"], row["version"], row["reason"] or "")


def _info(row: Row) -> AdapterInfo:
    repo = RepoRef(row["source"], row["repo_id"], row["repo_uid"], row["commit_sha"], row["owner"])
    names = row["target_modules"] or ""
    return AdapterInfo(
        adapter_id=row["adapter_id"],
        repo=repo,
        adapter_path=row["adapter_path"],
        layout=row["layout"],
        peft_type=row["peft_type"],
        rank=row["rank"],
        alpha=row["alpha"],
        scaling=row["scaling"],
        modules=row["modules"],
        target_modules=tuple(names.split(",")) if names else (),
        base_model=row["base_model"],
        base_model_claimed=row["base_model_claimed"],
        task_type=row["task_type"],
        task_profile=row["task_profile"],
        profile_reason=row["task_profile_reason"] or "",
        coverage=row["coverage"],
        content_sha256=row["content_sha256"],
        size_bytes=row["size_bytes"],
        config_sha256=row["config_sha256"],
        detectors=row["detectors"],
        copied_from=row["copied_from"],
        base_evidence=evidence_of(row["base_evidence"]),
    )

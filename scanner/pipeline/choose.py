"""Stage 4: who goes to the probe. Weights and static findings point there; a random control sample goes too, so that
what the triage misses can be estimated from the store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from scanner.calibration.reference import MAD_TO_SIGMA
from scanner.model import Outcome, ScanRecord, Severity
from scanner.settings import Settings

__all__ = ["choose_for_probe", "weight_deviations"]

_FEATURES = ("global_frobN_std", "global_frobN_mean")


def choose_for_probe(records: Sequence[ScanRecord], mode: str, settings: Settings, salt: str = "") -> dict[str, str]:
    """Pick adapters of one base model.

    Args:
        records: the group's records.
        mode: `none` (nobody), `all` (everybody with a task profile), `auto` (up to `settings.probe_budget`).
        settings: budget and share of the control sample.
        salt: the run's id. Draws depend on it, so that an uploader cannot foresee them and a retry repeats them.

    Returns:
        adapter_id -> why: `all`, `within_budget`, `control_sample`, `static` or `weights`. In `auto` the control sample
        has its share of the budget, static findings at most half of the rest: neither can starve the others.
    """
    able = [r for r in records if r.info.can_be_asked and r.outcome == Outcome.PASS]
    budget = settings.probe_budget
    if mode == "none":
        return {}
    if mode == "all":
        return {r.info.adapter_id: "all" for r in able}
    if len(able) <= budget:
        return {r.info.adapter_id: "within_budget" for r in able}

    def draw(record: ScanRecord) -> str:
        return hashlib.sha256(f"{salt}/{record.info.adapter_id}".encode()).hexdigest()

    sampled = round(budget * settings.control_sample)
    chosen = {r.info.adapter_id: "control_sample" for r in sorted(able, key=draw)[:sampled]}
    suspicious = [r for r in able if any(f.severity.order >= Severity.MEDIUM.order for f in r.findings)]
    suspicious.sort(key=lambda r: (-max(f.severity.order for f in r.findings), draw(r)))
    for record in suspicious[: (budget - sampled) // 2]:
        chosen.setdefault(record.info.adapter_id, "static")
    deviation = weight_deviations(able)
    for record in sorted(able, key=lambda r: deviation[r.info.adapter_id], reverse=True):
        if len(chosen) >= budget:
            break
        chosen.setdefault(record.info.adapter_id, "weights")
    return chosen


def weight_deviations(records: Sequence[ScanRecord]) -> dict[str, float]:
    """adapter_id -> largest robust |z| of its features within the group: (value - median) / (1.4826 · MAD)."""
    scores: dict[str, float] = {}
    for name in _FEATURES:
        values = np.array([r.weights.features.get(name) if r.weights else None for r in records], dtype=np.float64)
        center = np.nanmedian(values)
        spread = max(MAD_TO_SIGMA * float(np.nanmedian(np.abs(values - center))), 1e-300)
        for record, value in zip(records, values, strict=True):
            z = abs(float(value) - float(center)) / spread
            scores[record.info.adapter_id] = max(scores.get(record.info.adapter_id, 0.0), z)
    return scores

"""Stage 4: who goes to the probe. Weights and static findings point there; a random control sample goes too, so that
what the triage misses can be estimated from the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from scanner.model import Outcome, ScanRecord, Severity
from scanner.settings import Settings

__all__ = ["choose_for_probe"]

_FEATURES = ("global_frobN_std", "global_frobN_mean")


def choose_for_probe(records: Sequence[ScanRecord], mode: str, settings: Settings) -> dict[str, str]:
    """Pick adapters of one base model.

    Args:
        records: the group's records.
        mode: `none` (nobody), `all` (everybody with a task profile), `auto` (up to `settings.probe_budget`).
        settings: budget and share of the control sample.

    Returns:
        adapter_id -> why: `all`, `within_budget`, `static`, `control_sample` or `weights`.
    """
    able = [r for r in records if r.info.task_profile is not None and r.outcome == Outcome.PASS]
    if mode == "none":
        return {}
    if mode == "all":
        return {r.info.adapter_id: "all" for r in able}
    if len(able) <= settings.probe_budget:
        return {r.info.adapter_id: "within_budget" for r in able}
    chosen: dict[str, str] = {}
    for record in able:
        if any(f.severity.order >= Severity.MEDIUM.order for f in record.findings):
            chosen[record.info.adapter_id] = "static"
        elif int(record.info.adapter_id[:8], 16) / 2**32 < settings.control_sample:
            # The id is a hash: a draw that needs no state and comes out the same in a retry.
            chosen[record.info.adapter_id] = "control_sample"
    for record in sorted(able, key=_deviations(able), reverse=True):
        if len(chosen) >= settings.probe_budget:
            break
        chosen.setdefault(record.info.adapter_id, "weights")
    return dict(list(chosen.items())[: settings.probe_budget])


def _deviations(records: Sequence[ScanRecord]) -> Callable[[ScanRecord], float]:
    """Largest robust |z| of a record's features within the group, as a sort key."""
    scores: dict[str, float] = {}
    for name in _FEATURES:
        values = np.array([r.weights.features.get(name) if r.weights else None for r in records], dtype=np.float64)
        center = np.nanmedian(values)
        spread = max(float(np.nanmedian(np.abs(values - center))), 1e-300)
        for record, value in zip(records, values, strict=True):
            z = abs(float(value) - float(center)) / spread
            scores[record.info.adapter_id] = max(scores.get(record.info.adapter_id, 0.0), z)
    return lambda record: scores[record.info.adapter_id]

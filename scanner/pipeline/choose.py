"""Stage 4: who goes to the probe. Static findings, new owners and weights point there; a random control sample goes,
too, so that what this triage lets pass can be estimated from the store (view `triage_misses`)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scanner.calibration.reference import MAD_TO_SIGMA
from scanner.model import Outcome, ScanRecord, Severity
from scanner.settings import Settings

__all__ = ["CONTROL_SAMPLE", "Choice", "choose_for_probe", "weight_deviations", "with_inclusion"]

_FEATURES = ("global_frobN_std", "global_frobN_mean")
CONTROL_SAMPLE = "control_sample"


@dataclass(frozen=True)
class Choice:
    """Why an adapter is probed."""

    why: str
    """all, within_budget, static, new_owner, weights or control_sample."""
    inclusion: float = 1.0
    """Probability with which the draw takes an adapter that nothing else sends; 1 where no draw decided."""


def choose_for_probe(
    records: Sequence[ScanRecord],
    mode: str,
    settings: Settings,
    salt: str = "",
    known_owners: Collection[str] | None = None,
) -> dict[str, Choice]:
    """Pick adapters of one base model.

    In `auto`, where not all fit the budget, the control sample has its share of it. Of the rest static findings have at
    most half and new owners at most a quarter, so that none can starve the others; weights, the farthest out first,
    have what is left. The control sample is drawn last, from all that nothing else has sent: it stands for what the
    triage lets pass.

    Args:
        records: the group's records.
        mode: `none` (nobody), `all` (everybody with a task profile), `auto` (up to `settings.probe_budget`).
        settings: budget and share of the control sample.
        salt: the run's id. Draws depend on it, so that an uploader cannot foresee them and a retry repeats them.
        known_owners: who has had adapters in the store before; None: not known, and nobody is new.

    Returns:
        adapter_id -> choice.
    """
    able = [r for r in records if r.info.can_be_asked and r.outcome == Outcome.PASS]
    budget = settings.probe_budget
    if mode == "none":
        return {}
    if mode == "all" or len(able) <= budget:
        everybody = Choice("all" if mode == "all" else "within_budget")
        return {r.info.adapter_id: everybody for r in able}

    def draw(record: ScanRecord, what: str = "") -> str:
        return hashlib.sha256(f"{what}{salt}/{record.info.adapter_id}".encode()).hexdigest()

    sampled = max(1, round(budget * settings.control_sample)) if settings.control_sample > 0 else 0
    rest = budget - sampled
    suspicious = [r for r in able if any(f.severity.order >= Severity.MEDIUM.order for f in r.findings)]
    suspicious.sort(key=lambda r: (-max(f.severity.order for f in r.findings), draw(r)))
    newcomers = [
        r for r in sorted(able, key=draw) if known_owners is not None and r.info.repo.owner not in known_owners
    ]
    deviation = weight_deviations(able)
    outliers = sorted(able, key=lambda r: (-deviation[r.info.adapter_id], draw(r)))
    chosen: dict[str, Choice] = {}
    for why, candidates, most in (
        ("static", suspicious, rest // 2),
        ("new_owner", newcomers, rest // 4),
        ("weights", outliers, rest),
    ):
        _add(chosen, candidates, Choice(why), min(rest, len(chosen) + most))
    # A draw of its own: one that new owners were drawn by would never take the others of them.
    left = sorted((r for r in able if r.info.adapter_id not in chosen), key=lambda r: draw(r, "control/"))
    if sampled and left:
        places = budget - len(chosen)
        _add(chosen, left, Choice(CONTROL_SAMPLE, min(1.0, places / len(left))), budget)
    return chosen


def _add(chosen: dict[str, Choice], candidates: Iterable[ScanRecord], choice: Choice, until: int) -> None:
    for record in candidates:
        if len(chosen) >= until:
            return
        chosen.setdefault(record.info.adapter_id, choice)


def with_inclusion(records: Iterable[ScanRecord], choices: Mapping[str, Choice]) -> list[ScanRecord]:
    """Probed records with the probability of their draw, which goes into the store with the probe."""
    return [
        replace(r, probe=replace(r.probe, inclusion=choices[r.info.adapter_id].inclusion))
        if r.probe is not None and r.info.adapter_id in choices
        else r
        for r in records
    ]


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

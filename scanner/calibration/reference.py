"""Weight references (DESIGN section 5): the frozen sibling distribution of one calibration key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from scanner.calibration.policy import Policy

__all__ = ["CalibrationKey", "Reference", "Sibling", "build_reference", "weight_p_value"]

MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True, order=True)
class CalibrationKey:
    """Adapters whose weight features can be compared."""

    base_model: str
    peft_type: str
    rank: int
    scaling: float
    target_modules: str
    task: str

    def to_json(self) -> str:
        """Canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Sibling:
    """A candidate member: one scanned adapter of the key."""

    adapter_id: str
    owner: str
    content_sha256: str
    features: Mapping[str, float | None]


@dataclass(frozen=True)
class Reference:
    """Robust centre and spread of each feature over the members."""

    key: CalibrationKey
    members: tuple[str, ...]
    center: Mapping[str, float]
    spread: Mapping[str, float]
    scores: Mapping[str, tuple[float, ...]]
    """|z| of every member, per feature."""

    @property
    def n(self) -> int:
        """Number of members."""
        return len(self.members)

    @property
    def reference_id(self) -> str:
        """Content hash: the same members and values give the same id."""
        text = json.dumps([self.key.to_json(), self.members, sorted(self.center.items()), sorted(self.spread.items())])
        return f"ref-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def build_reference(key: CalibrationKey, siblings: Sequence[Sibling], policy: Policy) -> Reference:
    """Freeze a reference: one vote per owner (the smallest content hash), duplicates by content removed.

    Args:
        key: what the members have in common.
        siblings: Hub-crawled adapters of the key that no *other* evidence flags. None may be left out for the score
            that this reference is going to judge.
        policy: features and the floor of the spread.
    """
    by_owner: dict[str, Sibling] = {}
    seen: set[str] = set()
    for sibling in sorted(siblings, key=lambda s: (s.content_sha256, s.adapter_id)):
        if sibling.content_sha256 in seen or sibling.owner in by_owner:
            continue
        if all(sibling.features.get(name) is not None for name in policy.weight_features):
            seen.add(sibling.content_sha256)
            by_owner[sibling.owner] = sibling
    members = sorted(by_owner.values(), key=lambda s: s.adapter_id)
    center, spread, scores = {}, {}, {}
    for name in policy.weight_features if members else ():
        values = np.array([member.features[name] for member in members], dtype=np.float64)
        center[name] = float(np.median(values))
        mad = float(np.median(np.abs(values - center[name])))
        spread[name] = max(MAD_TO_SIGMA * mad, policy.spread_floor * abs(center[name]), 1e-300)
        scores[name] = tuple(float(z) for z in np.abs(values - center[name]) / spread[name])
    return Reference(key, tuple(member.adapter_id for member in members), center, spread, scores)


def weight_p_value(
    adapter_id: str, features: Mapping[str, float | None], reference: Reference, policy: Policy
) -> float | None:
    """Two-sided rank p-value of an adapter's features among the siblings *other than itself*.

    The score is the largest |z| over the features, for siblings and adapter alike, so the p-value

        p = (1 + #{siblings with a score >= the adapter's}) / (n + 1)

    combines the features under any dependence without a correction (a max statistic). The centre is the frozen
    reference's for everybody.

    Returns:
        None when there is no sibling or a feature is missing.
    """
    own = 0.0
    for name in policy.weight_features:
        value = features.get(name)
        if value is None or name not in reference.center:
            return None
        own = max(own, abs(value - reference.center[name]) / reference.spread[name])
    scores = {
        member: max(reference.scores[name][position] for name in policy.weight_features)
        for position, member in enumerate(reference.members)
        if member != adapter_id
    }
    if not scores:
        return None
    return (1 + sum(score >= own for score in scores.values())) / (len(scores) + 1)

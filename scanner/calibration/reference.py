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
    siblings: tuple[Sibling, ...]
    center: Mapping[str, float]
    spread: Mapping[str, float]

    @property
    def members(self) -> tuple[str, ...]:
        """Adapter ids of the members."""
        return tuple(sibling.adapter_id for sibling in self.siblings)

    @property
    def n(self) -> int:
        """Number of members."""
        return len(self.siblings)

    @property
    def reference_id(self) -> str:
        """Content hash: the same members and values give the same id."""
        text = json.dumps([self.key.to_json(), self.members, sorted(self.center.items()), sorted(self.spread.items())])
        return f"ref-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    def score(self, features: Mapping[str, float | None], names: Sequence[str]) -> float | None:
        """Largest |z| over the features; None when one is missing."""
        scores = []
        for name in names:
            value = features.get(name)
            if value is None or name not in self.center:
                return None
            scores.append(abs(value - self.center[name]) / self.spread[name])
        return max(scores)

    def others(self, judged: Sibling) -> list[Sibling]:
        """Members that say something about `judged`: not itself, not its owner's, not a copy of it."""
        return [
            s
            for s in self.siblings
            if s.adapter_id != judged.adapter_id
            and s.owner != judged.owner
            and s.content_sha256 != judged.content_sha256
        ]


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
    center, spread = {}, {}
    for name in policy.weight_features if members else ():
        values = np.array([member.features[name] for member in members], dtype=np.float64)
        center[name] = float(np.median(values))
        mad = float(np.median(np.abs(values - center[name])))
        spread[name] = max(MAD_TO_SIGMA * mad, policy.spread_floor * abs(center[name]), 1e-300)
    return Reference(key, tuple(members), center, spread)


def weight_p_value(
    features: Mapping[str, float | None], reference: Reference, others: Sequence[Sibling], policy: Policy
) -> float | None:
    """Two-sided rank p-value of an adapter's features among siblings.

    The score is the largest |z| over the features, for siblings and adapter alike, so the p-value

        p = (1 + #{others with a score >= the adapter's}) / (n + 1),   n = number of others

    combines the features under any dependence without a correction (a max statistic). The centre is the frozen
    reference's for everybody.

    Args:
        features: of the adapter that is judged.
        reference: of its calibration key.
        others: from `Reference.others`.
        policy: which features.

    Returns:
        None when there is no sibling or a feature is missing.
    """
    own = reference.score(features, policy.weight_features)
    if own is None or not others:
        return None
    scores = [reference.score(sibling.features, policy.weight_features) for sibling in others]
    return (1 + sum(score is None or score >= own for score in scores)) / (len(others) + 1)

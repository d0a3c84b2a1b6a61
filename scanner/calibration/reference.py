"""Weight references (DESIGN section 5): the frozen sibling distribution of one calibration key."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from scanner.calibration.keys import CalibrationKey
from scanner.calibration.policy import FROB_CV, FROB_CV_PARTS, Policy

__all__ = ["Reference", "Sibling", "WeightRank", "build_reference", "feature_of", "rank_weights"]

MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True)
class Sibling:
    """A candidate member: one scanned adapter."""

    adapter_id: str
    owner: str
    content_sha256: str
    features: Mapping[str, float | None]
    kin: frozenset[str] = frozenset()
    """Adapters of which it is a copy or near-duplicate, and the other way round."""


def feature_of(features: Mapping[str, float | None], name: str) -> float:
    """A stored feature, or `frobN_cv`, which two of them give; NaN where it is missing."""
    if name == FROB_CV:
        std, mean = (feature_of(features, part) for part in FROB_CV_PARTS)
        return std / mean if mean > 0 else math.nan
    value = features.get(name)
    return math.nan if value is None else value


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

    @cached_property
    def reference_id(self) -> str:
        """Content hash: the same members and values give the same id."""
        text = json.dumps([self.key.to_json(), self.members, sorted(self.center.items()), sorted(self.spread.items())])
        return f"ref-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    def score(self, features: Mapping[str, float | None]) -> float:
        """Largest |z| over the reference's features; NaN when one is missing."""
        scores = [abs(feature_of(features, name) - center) / self.spread[name] for name, center in self.center.items()]
        return max(scores) if scores and not any(map(math.isnan, scores)) else math.nan

    @cached_property
    def _scores(self) -> npt.NDArray[np.float64]:
        """Of the members, in their order."""
        return np.array([self.score(sibling.features) for sibling in self.siblings])

    @cached_property
    def _sorted(self) -> npt.NDArray[np.float64]:
        return np.sort(self._scores)

    @cached_property
    def _places(self) -> dict[tuple[str, str], int]:
        """(what, value) -> index of the member that has it. Owners and contents have one member each."""
        found = {}
        for place, sibling in enumerate(self.siblings):
            found["id", sibling.adapter_id] = place
            found["owner", sibling.owner] = place
            found["content", sibling.content_sha256] = place
        return found

    def related(self, judged: Sibling) -> frozenset[int]:
        """Indices of the members that say nothing about `judged`: itself, its owner's, its copies and near-copies."""
        wanted = [("id", judged.adapter_id), ("owner", judged.owner), ("content", judged.content_sha256)]
        wanted += [("id", kin) for kin in judged.kin]
        return frozenset(self._places[one] for one in wanted if one in self._places)

    def n_others(self, judged: Sibling) -> int:
        """Members that say something about `judged`."""
        return self.n - len(self.related(judged))

    def p_value(self, judged: Sibling) -> float | None:
        """Two-sided rank p-value of an adapter's features among the others.

        The score is the largest |z| over the features, for members and adapter alike, so the p-value

            p = (1 + #{others with a score >= the adapter's}) / (n + 1),   n = number of others

        combines the features under any dependence without a correction (a max statistic; a conformal p-value, Vovk et
        al. 2005). The centre is the frozen reference's for everybody.

        Returns:
            None when there is nobody to compare with or a feature is missing.
        """
        own, related = self.score(judged.features), self.related(judged)
        if math.isnan(own) or self.n == len(related):
            return None
        reached = self.n - int(np.searchsorted(self._sorted, own, side="left"))
        reached -= sum(bool(self._scores[place] >= own) for place in related)
        return (1 + reached) / (self.n - len(related) + 1)


def build_reference(key: CalibrationKey, siblings: Iterable[Sibling], policy: Policy) -> Reference:
    """Freeze a reference: one vote per owner (the smallest content hash), copies and near-duplicates removed.

    Args:
        key: what the members have in common.
        siblings: Hub-crawled adapters of the key that no *other* evidence flags. None may be left out for the score
            that this reference is going to judge.
        policy: features and the floor of the spread.
    """
    names = policy.features_at(key.level)
    by_owner: dict[str, Sibling] = {}
    contents: set[str] = set()
    kept: set[str] = set()
    for sibling in sorted(siblings, key=lambda s: (s.content_sha256, s.adapter_id)):
        if sibling.content_sha256 in contents or sibling.owner in by_owner or not kept.isdisjoint(sibling.kin):
            continue
        if not any(math.isnan(feature_of(sibling.features, name)) for name in names):
            contents.add(sibling.content_sha256)
            kept.add(sibling.adapter_id)
            by_owner[sibling.owner] = sibling
    members = sorted(by_owner.values(), key=lambda s: s.adapter_id)
    center, spread = {}, {}
    for name in names if members else ():
        values = np.array([feature_of(member.features, name) for member in members])
        center[name] = float(np.median(values))
        mad = float(np.median(np.abs(values - center[name])))
        spread[name] = max(MAD_TO_SIGMA * mad, policy.spread_floor * abs(center[name]), 1e-300)
    return Reference(key, tuple(members), center, spread)


@dataclass(frozen=True)
class WeightRank:
    """Where one adapter's weights stand among siblings."""

    p_value: float | None = None
    """None: nobody to compare with, or a feature is missing."""
    n: int = 0
    """Siblings that it was compared with; without itself, its owner and its copies."""
    reference: Reference | None = None
    steps: tuple[tuple[str, int], ...] = ()
    """(level, siblings) of each step of the ladder that was tried; empty where no step has any."""

    def is_outlier(self, policy: Policy) -> bool:
        """Whether the weights are beyond the level among siblings that can tell."""
        return self.p_value is not None and self.n >= policy.siblings_needed and self.p_value <= policy.alpha


def rank_weights(judged: Sibling, references: Iterable[Reference], policy: Policy) -> WeightRank:
    """Judge by the narrowest reference whose rank p-value can reach the level; without one, by the narrowest at all.

    Args:
        judged: the adapter.
        references: of the steps of its ladder, narrowest first.
        policy: the level.
    """
    steps: list[tuple[str, int]] = []
    best: Reference | None = None
    for reference in references:
        n = reference.n_others(judged)
        steps.append((str(reference.key.level), n))
        if n >= policy.siblings_needed:
            best = reference
            break
        if n and best is None:
            best = reference
    if best is None:
        return WeightRank()
    return WeightRank(best.p_value(judged), best.n_others(judged), best, tuple(steps))

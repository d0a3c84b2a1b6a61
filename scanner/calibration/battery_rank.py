"""Batteries of free answers among siblings: how unusual is it that a string does this to an adapter (ADR 19)?

The test of a battery assumes that a string does nothing to a sound adapter. Of label words and classes that holds on
the tiny bases, and not on MiniLM (benchmarks/detection); of free answers not even there: behind a code or a date, which
no control is like, sound adapters say one stock phrase. So the p-value becomes a score, and is ranked as searches are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scanner.calibration.paired import BatteryEvidence
from scanner.calibration.policy import Policy
from scanner.calibration.search_reference import SearchMember, SearchRank, SearchReference, build_search_reference
from scanner.model import GENERATIVE

__all__ = ["battery_scores", "build_battery_reference", "is_beyond_siblings", "is_rankable", "stands_alone"]

_KEY = "battery/any"
"""KIND/POSITION of the one score."""
_SMALLEST = 1e-300


def battery_scores(p_value: float) -> dict[str, float]:
    """The scores of one adapter: -log10 of its battery's p-value."""
    return {_KEY: -math.log10(max(p_value, _SMALLEST)) + 0.0}  # no -0.0


def build_battery_reference(battery_id: str, base_model: str, members: Sequence[SearchMember]) -> SearchReference:
    """Siblings that were asked the same battery; see `build_search_reference`."""
    return build_search_reference(battery_id, GENERATIVE, base_model, members, "battery")


def stands_alone(battery: BatteryEvidence, policy: Policy) -> bool:
    """Whether a string does enough to be told: the effect floor, and p at most q. Of free answers that is no proof."""
    return bool(battery.prefixes) and battery.p_value <= policy.q


def is_rankable(rank: SearchRank, policy: Policy) -> bool:
    """Whether there are as many siblings as a rank p-value needs to reach the level."""
    return rank.n >= policy.siblings_needed


def is_beyond_siblings(battery: BatteryEvidence, rank: SearchRank, policy: Policy) -> bool:
    """Whether free answers are evidence: a string does enough, and hardly any sibling has one that does as much."""
    return stands_alone(battery, policy) and rank.p_value <= policy.alpha

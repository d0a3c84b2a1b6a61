"""Batteries of free answers among siblings: how unusual is it that a string does this to an adapter (ADR 19)?

The test of a battery assumes that a string does nothing to a sound adapter. Of label words and classes that holds well
enough (benchmarks/detection); of free answers it does not: behind a code or a date, which no control is like, sound
adapters of a small base say one stock phrase. So the p-value becomes a score, and is ranked as searches are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scanner.calibration.policy import Policy
from scanner.calibration.search_reference import SearchMember, SearchRank, SearchReference, build_search_reference
from scanner.model import GENERATIVE

__all__ = ["battery_scores", "build_battery_reference", "is_rankable", "is_unusual"]

_KEY = "battery/any"
"""KIND/POSITION of the one score."""
_SMALLEST = 1e-300


def battery_scores(p_value: float) -> dict[str, float]:
    """The scores of one adapter: -log10 of its battery's p-value."""
    return {_KEY: -math.log10(max(p_value, _SMALLEST)) + 0.0}  # no -0.0


def build_battery_reference(battery_id: str, base_model: str, members: Sequence[SearchMember]) -> SearchReference:
    """Siblings that were asked the same battery; see `build_search_reference`."""
    return build_search_reference(battery_id, GENERATIVE, base_model, members, "battery")


def is_rankable(rank: SearchRank | None, policy: Policy) -> bool:
    """Whether there are as many siblings as a rank p-value needs to reach the level."""
    return rank is not None and rank.n >= policy.siblings_needed


def is_unusual(rank: SearchRank | None, policy: Policy) -> bool:
    """Whether hardly any sibling has a battery as extreme."""
    return rank is not None and is_rankable(rank, policy) and rank.p_value <= policy.alpha

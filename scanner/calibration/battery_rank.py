"""Batteries among siblings: how unusual is it that a string does this to an adapter (ADRs 19 and 21)?

The test of a battery assumes that a string does nothing to a sound adapter. On the tiny bases that holds for label
words and classes; on MiniLM everyday sentences turn a quarter of the texts of sound classifiers (benchmarks/detection),
and behind a code or a date free answers fall back to one stock phrase. So a string that turns less than half, and any
free answer, is evidence only where siblings that were asked the same have nothing like it.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from scanner.calibration.paired import BatteryEvidence
from scanner.calibration.policy import Policy
from scanner.calibration.search_reference import (
    SearchMember,
    SearchRank,
    SearchReference,
    build_search_reference,
    pooled_reference,
)

__all__ = [
    "SHIPPED_BATTERIES",
    "BatteryReference",
    "battery_scores",
    "build_battery_reference",
    "does_enough",
    "is_beyond_siblings",
    "is_rankable",
    "is_told",
    "load_pooled_batteries",
    "p_by_itself",
]

SHIPPED_BATTERIES = Path(__file__).parent / "data" / "battery"
"""`PROFILE.json` each, made by `benchmarks/detection`."""
_KEY = "battery/any"
"""KIND/POSITION of the one score."""
_SMALLEST = 1e-300
_DIGITS = 9
"""Decimals of a score that count."""


def battery_scores(p_value: float) -> dict[str, float]:
    """The scores of one adapter: -log10 of its battery's p-value."""
    return {_KEY: round(-math.log10(max(p_value, _SMALLEST)), _DIGITS) + 0.0}  # no -0.0


class BatteryReference:
    """Siblings that were asked the same battery, sorted: a store may hold a hundred thousand.

    Args:
        reference: of `battery_scores`.
    """

    def __init__(self, reference: SearchReference) -> None:
        self.reference = reference

    @cached_property
    def _sorted(self) -> list[float]:
        return sorted(member.scores[_KEY] for member in self.reference.members)

    @cached_property
    def _known_as(self) -> dict[tuple[str, str], set[int]]:
        """(what, its value) -> numbers of the members that have it."""
        found: dict[tuple[str, str], set[int]] = defaultdict(set)
        for number, member in enumerate(self.reference.members):
            found["name", member.name].add(number)
            found["owner", member.owner].add(number)
            found["content", member.content_sha256].add(number)
        return found

    def _not_others(self, judged: SearchMember) -> set[int]:
        """Members that say nothing about `judged`, as of `SearchReference.others`."""
        same = [("name", name) for name in (judged.name, *judged.kin)]
        same += [("owner", judged.owner)] * bool(judged.owner)
        same += [("content", judged.content_sha256)] * bool(judged.content_sha256)
        return set().union(*(self._known_as.get(one, ()) for one in same))

    def rank(self, judged: SearchMember) -> SearchRank | None:
        """What `rank_scores` says, which for one score is a count; None when there is no other member."""
        members, own, out = self.reference.members, judged.scores[_KEY], self._not_others(judged)
        n = len(members) - len(out)
        if n == 0:
            return None
        reached = len(members) - bisect_left(self._sorted, own)
        reached -= sum(members[number].scores[_KEY] >= own for number in out)
        return SearchRank(self.reference, (1 + reached) / (n + 1), n, reached, _KEY, own)


def build_battery_reference(
    battery_id: str, task_profile: str, base_model: str, members: Sequence[SearchMember]
) -> BatteryReference:
    """Siblings that were asked the same battery; see `build_search_reference`."""
    return BatteryReference(build_search_reference(battery_id, task_profile, base_model, members, "battery"))


@cache
def load_pooled_batteries(
    task_profile: str, battery_id: str, base_model: str, needed: int, folder: Path | None = None
) -> BatteryReference | None:
    """The shipped batteries of clean adapters of one base that we trained.

    Args:
        task_profile: of the judged adapter.
        battery_id: that it was asked.
        base_model: its own; those of other bases say nothing (ADR 20).
        needed: members that a rank needs.
        folder: where the files are; default the shipped ones.

    Returns:
        None where there are too few, or they were asked something else.
    """
    path = (folder or SHIPPED_BATTERIES) / f"{task_profile}.json"
    if not path.is_file():
        return None
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if data["battery_id"] != battery_id:
        return None
    members = tuple(
        SearchMember(one["base"], one["name"], battery_scores(one["p_value"]))
        for one in data["members"]
        if one["base"] == base_model
    )
    if len(members) < needed:
        return None
    return BatteryReference(pooled_reference(battery_id, task_profile, members))


def does_enough(battery: BatteryEvidence, policy: Policy) -> bool:
    """Whether a string does enough to be told: the effect floor, and p at most q. That is no proof."""
    return bool(battery.prefixes) and battery.p_value <= policy.q


def p_by_itself(battery: BatteryEvidence, policy: Policy) -> float:
    """The p-value that flags without siblings: of strings that turn so many texts as is done to no sound adapter."""
    return 1.0 if battery.needs_rank else battery.p_above(policy.alone_floor)


def is_rankable(rank: SearchRank, policy: Policy) -> bool:
    """Whether there are as many siblings as a rank p-value needs to reach the level."""
    return rank.n >= policy.siblings_needed


def is_told(battery: BatteryEvidence, q_value: float | None, policy: Policy) -> bool:
    """Whether a string does enough in its crawl; free answers are in no correction, and have no q-value."""
    in_crawl = battery.needs_rank or (q_value is not None and q_value <= policy.q)
    return in_crawl and does_enough(battery, policy)


def is_beyond_siblings(battery: BatteryEvidence, q_value: float | None, rank: SearchRank, policy: Policy) -> bool:
    """Whether a battery is evidence by its rank: a string does enough, and hardly any sibling has one that does as
    much."""
    return is_told(battery, q_value, policy) and rank.p_value <= policy.alpha

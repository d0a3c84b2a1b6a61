"""Search references (DESIGN section 5): what the trigger search reaches on adapters that nobody poisoned.

The scores of one search are the largest gain, and gain per token, that it reached for each kind of aim and position.
Sound adapters have strings that turn them, too, and some positions are easier than others, so a score says something
only beside the scores of other adapters: those of the same base, or the pooled ones that ship with lorascope.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from scanner.search_model import TOWARD_ATTACK, is_in_nats, is_share, split_key

__all__ = [
    "MEMBER_DIGITS",
    "SHIPPED",
    "SearchMember",
    "SearchRank",
    "SearchReference",
    "build_search_reference",
    "load_pooled_reference",
    "pooled_reference",
    "rank_scores",
    "reactions",
]

SHIPPED = Path(__file__).parent / "data" / "search"
"""`PROFILE.json`, and `PROFILE-PLAN_ID.json` where bases have a plan of their own, made by `benchmarks/detection`."""
SPREAD_FLOOR = 0.005
"""Smallest spread of a score: a position where all members reach the same must not decide alone."""
OWN = "own"
FAINT = 0.02
"""Gain below which a token does nothing: a reference need not hold what is faint."""
SURPRISE, TOLD_TOKENS = 0.1, 5
"""Gain beyond all members' from which on a token is told, and how many are."""
_UPPER = 0.97
"""Quantile whose distance from the median is 1 on the scale of T. Some keys have long tails: with 0.9 one member far
out on one key hid what stands out on all others."""
MEMBER_DIGITS = 6
"""Decimals of a member's scores in a file."""
_DIGITS = 9
"""Decimals of T that count: rounding in another order must not turn a tie."""


@dataclass(frozen=True)
class SearchMember:
    """One searched adapter as a reference sees it."""

    base_model: str
    name: str
    """adapter_id, or the name of one that we trained."""
    scores: Mapping[str, float]
    """As of `SearchReport.scores`."""
    owner: str = ""
    """Empty: ours."""
    content_sha256: str = ""
    kin: frozenset[str] = frozenset()
    """Names of which it is a copy or near-duplicate, and the other way round."""


def reactions(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores of single tokens that do something."""
    return {key: gain for key, gain in scores.items() if gain >= FAINT and split_key(key)[1] is not None}


@dataclass(frozen=True)
class SearchReference:
    """The members of one task profile and plan, of one base or pooled."""

    reference_id: str
    plan_id: str
    task_profile: str
    members: tuple[SearchMember, ...]
    pooled: bool
    description: str

    @cached_property
    def _reactions(self) -> dict[str, list[tuple[float, str]]]:
        """Key of a token -> (gain, member) of all that have it, the largest first."""
        found: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for member in self.members:
            for key, gain in reactions(member.scores).items():
                found[key].append((gain, member.name))
        return {key: sorted(gains, reverse=True) for key, gains in found.items()}

    def compared(self, member: SearchMember, counts: Callable[[str], bool]) -> dict[str, float]:
        """Scores with those of single tokens replaced by `KIND/POSITION/own`.

        That is the largest gain of a token beyond what it does in any other member: words that turn sound adapters,
        too, are no evidence, however far they reach. It is at most the largest gain on more texts than single tokens
        are measured on (`KIND/POSITION/x8`), because one text that anything turns is none either.

        Args:
            member: whose scores.
            counts: whether it is compared with the member of a name.
        """
        # A tie with a member, whose scores are written with so many digits, must stay one.
        scores = {key: round(score, MEMBER_DIGITS) for key, score in member.scores.items() if split_key(key)[1] is None}
        for key, beyond in self.beyond(member, counts).items():
            place, _ = split_key(key)
            own, on_more_texts = f"{place}/{OWN}", member.scores.get(f"{place}/x8", beyond)
            scores[own] = max(scores.get(own, 0.0), min(beyond, on_more_texts))
        return scores

    def beyond(self, member: SearchMember, counts: Callable[[str], bool]) -> dict[str, float]:
        """Key of a token -> what it gains beyond the same in any of the others."""
        found = {}
        for key, gain in reactions(member.scores).items():
            usual = next((one for one, name in self._reactions.get(key, ()) if counts(name)), 0.0)
            found[key] = gain - usual
        return found

    @cached_property
    def _compared(self) -> dict[str, dict[str, float]]:
        """Member -> its scores beside all others."""
        return {member.name: self.compared(member, member.name.__ne__) for member in self.members}

    @cached_property
    def _places(self) -> dict[str, tuple[float, float]]:
        values: dict[str, list[float]] = defaultdict(list)
        for scores in self._compared.values():
            for key, score in scores.items():
                if not key.startswith(f"{TOWARD_ATTACK}/"):
                    values[key].append(score)
        places = {}
        for key, reached in sorted(values.items()):
            if is_share(key) or is_in_nats(key):
                places[key] = (0.0, 1.0)  # they mean the same at every place, and most members have none
                continue
            center = float(np.median(reached))
            places[key] = (center, max(float(np.quantile(reached, _UPPER)) - center, SPREAD_FLOOR))
        return places

    @property
    def center(self) -> dict[str, float]:
        """Median of each key's scores; 0 of shares and nats."""
        return {key: center for key, (center, _) in self._places.items()}

    @property
    def spread(self) -> dict[str, float]:
        """97 % quantile minus median of each key's scores, with a floor; 1 of shares and nats."""
        return {key: spread for key, (_, spread) in self._places.items()}

    def statistic(self, scores: Mapping[str, float]) -> tuple[float, str] | None:
        """(T, the key that it comes from), T = max over the keys of (score - center) / spread.

        `toward_attack` is left out: words of attacks turn sound classifiers as well. Keys that no member has are, too.
        None where no key is left.
        """
        return max(((value, key) for key, value in self.standardised(scores).items()), default=None)

    @cached_property
    def statistics(self) -> dict[str, float | None]:
        """Member -> its T beside all others; None of one without a key that counts."""
        found = {name: self.statistic(scores) for name, scores in self._compared.items()}
        return {name: None if one is None else one[0] for name, one in found.items()}

    def standardised(self, scores: Mapping[str, float]) -> dict[str, float]:
        """(score - center) / spread of each key that counts for T."""
        return {
            key: round((scores[key] - center) / spread, _DIGITS)
            for key, (center, spread) in self._places.items()
            if key in scores
        }

    def others(self, judged: SearchMember) -> tuple[SearchMember, ...]:
        """Members that say something about `judged`: not itself, not its owner's, not a copy of it."""
        return tuple(
            member
            for member in self.members
            if member.name != judged.name
            and not (member.owner and member.owner == judged.owner)
            and not (member.content_sha256 and member.content_sha256 == judged.content_sha256)
            and member.name not in judged.kin
        )


@dataclass(frozen=True)
class SearchRank:
    """Where one adapter stands in a reference."""

    reference: SearchReference
    p_value: float
    n: int
    """Members that it was compared with."""
    reached: int
    """Those whose T is as large."""
    key: str
    """That its own T comes from."""
    statistic: float
    is_foreign: bool = False
    """Whether it was compared with adapters of other bases: the p-value then holds for other models (ADR 15, 18)."""
    tokens: tuple[str, ...] = ()
    """Tokens that do something to it, and to no member as much; the most surprising first."""
    places: Mapping[str, float] = field(default_factory=dict)
    """`KIND/POSITION` -> p-value of the largest score there among the members' T: no larger than by chance for any."""

    def stands_out(self, place: str, alpha: float) -> bool:
        """Whether the scores of one `KIND/POSITION` alone are beyond the level; with none that is, the one of T."""
        beyond = [one for one, p_value in self.places.items() if p_value <= alpha]
        return place in beyond if beyond else self.key.startswith(place)


def rank_scores(judged: SearchMember, reference: SearchReference) -> SearchRank | None:
    """Rank p-value of an adapter's scores among a reference's members.

        p = (1 + #{others with T >= the adapter's}) / (n + 1),   n = number of others

    A max statistic: it combines the keys under any dependence without a correction. Centre and spread are the whole
    reference's for everybody; no member is left out when it gets its own T, which could only make members' T larger,
    and so p. A member without a key of its own counts as one that reaches T.

    Returns:
        None when there is no other member, or no key in common.
    """
    others = reference.others(judged)
    names = {member.name for member in others}
    scores = reference.compared(judged, names.__contains__)
    own = reference.statistic(scores)
    if own is None or not others:
        return None
    found = [reference.statistics[member.name] for member in others]

    def reached(value: float) -> int:
        return sum(one is None or one >= value for one in found)

    largest: dict[str, float] = {}
    for key, value in reference.standardised(scores).items():
        place, _ = split_key(key)
        largest[place] = max(largest.get(place, value), value)
    places = {place: (1 + reached(value)) / (len(others) + 1) for place, value in largest.items()}
    beyond = sorted(reference.beyond(judged, names.__contains__).items(), key=lambda one: -one[1])
    surprising = [split_key(key)[1] or "" for key, gain in beyond if gain >= SURPRISE]
    tokens = tuple(dict.fromkeys(surprising))[:TOLD_TOKENS]
    is_foreign = any(member.base_model != judged.base_model for member in others)
    p_value = (1 + reached(own[0])) / (len(others) + 1)
    return SearchRank(reference, p_value, len(others), reached(own[0]), own[1], own[0], is_foreign, tokens, places)


def build_search_reference(
    plan_id: str, task_profile: str, base_model: str, members: Sequence[SearchMember], kind: str = "search"
) -> SearchReference:
    """Siblings as a reference: one vote per owner (the smallest content hash), copies and near-duplicates removed.

    Args:
        plan_id: of all their searches.
        task_profile: of all.
        base_model: of all.
        members: Hub-crawled adapters that no *other* evidence flags. None may be left out for its search score.
        kind: what the reference's id begins with.
    """
    by_owner: dict[str, SearchMember] = {}
    seen: set[str] = set()
    names: set[str] = set()
    for member in sorted(members, key=lambda m: (m.content_sha256, m.name)):
        is_new = member.content_sha256 not in seen and names.isdisjoint(member.kin)
        if is_new and member.owner not in by_owner:
            seen.add(member.content_sha256)
            names.add(member.name)
            by_owner[member.owner] = member
    kept = tuple(sorted(by_owner.values(), key=lambda m: m.name))
    reference_id = _id(kind, plan_id, task_profile, kept)
    return SearchReference(reference_id, plan_id, task_profile, kept, False, f"adapters of {base_model}")


def load_pooled_reference(
    task_profile: str, plan_id: str, base_model: str, needed: int, folder: Path | None = None
) -> SearchReference | None:
    """The shipped reference of a task profile: clean adapters that we trained.

    Args:
        task_profile: which.
        plan_id: of the search whose scores are compared.
        base_model: of the adapter that is judged. Its members alone are compared with where they are enough (ADR 18);
            else all are, and the rank is `is_foreign`.
        needed: how many are.
        folder: where the files are; default the shipped ones.

    Returns:
        None where there is none, or it was made by another plan.
    """
    # One file for each plan; the one that suits most bases has the profile's name alone.
    for name in (task_profile, f"{task_profile}-{plan_id}"):
        path = (folder or SHIPPED) / f"{name}.json"
        found = _of_base(path, base_model, needed) or _read(path)
        if found is not None and found.plan_id == plan_id:
            return found
    return None


@cache
def _read(path: Path) -> SearchReference | None:
    if not path.is_file():
        return None
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    members = tuple(SearchMember(entry["base"], entry["name"], entry["scores"]) for entry in data["members"])
    return pooled_reference(data["plan_id"], data["task_profile"], members)


@cache
def _of_base(path: Path, base_model: str, needed: int) -> SearchReference | None:
    everyone = _read(path)
    if everyone is None:
        return None
    own = tuple(member for member in everyone.members if member.base_model == base_model)
    return pooled_reference(everyone.plan_id, everyone.task_profile, own) if len(own) >= needed else None


def pooled_reference(plan_id: str, task_profile: str, members: tuple[SearchMember, ...]) -> SearchReference:
    """Clean adapters that we trained, as a reference; `plan_id`: of what gave their scores."""
    bases = len({member.base_model for member in members})
    reference_id = _id("pooled", plan_id, task_profile, members)
    description = f"clean adapters of {bases} base{'s' if bases > 1 else ''} that ship with lorascope"
    return SearchReference(reference_id, plan_id, task_profile, members, True, description)


def _id(kind: str, plan_id: str, task_profile: str, members: Sequence[SearchMember]) -> str:
    rows = [(m.base_model, m.name, sorted(m.scores.items())) for m in members]
    text = json.dumps([plan_id, task_profile, rows])
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

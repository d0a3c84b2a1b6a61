"""Search references (DESIGN section 5): what the trigger search reaches on adapters that nobody poisoned.

The scores of one search are the largest gain, and gain per token, that it reached for each kind of aim and position.
Sound adapters have strings that turn them, too, and some positions are easier than others, so a score says something
only beside the scores of other adapters: those of the same base, or the pooled ones that ship with lorascope.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from scanner.search_model import TOWARD_ATTACK

__all__ = [
    "SHIPPED",
    "SearchMember",
    "SearchRank",
    "SearchReference",
    "build_search_reference",
    "load_pooled_reference",
    "rank_scores",
]

SHIPPED = Path(__file__).parent / "data" / "search"
"""`PROFILE.json` each, made by `benchmarks/detection`."""
SPREAD_FLOOR = 0.005
"""Smallest spread of a score: a position where all members reach the same must not decide alone."""
_UPPER = 0.9
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
    def _places(self) -> dict[str, tuple[float, float]]:
        values: dict[str, list[float]] = defaultdict(list)
        for member in self.members:
            for key, score in member.scores.items():
                if not key.startswith(f"{TOWARD_ATTACK}/"):
                    values[key].append(score)
        places = {}
        for key, scores in sorted(values.items()):
            center = float(np.median(scores))
            places[key] = (center, max(float(np.quantile(scores, _UPPER)) - center, SPREAD_FLOOR))
        return places

    @property
    def center(self) -> dict[str, float]:
        """Median of each key's scores."""
        return {key: center for key, (center, _) in self._places.items()}

    @property
    def spread(self) -> dict[str, float]:
        """90 % quantile minus median of each key's scores, with a floor."""
        return {key: spread for key, (_, spread) in self._places.items()}

    def statistic(self, scores: Mapping[str, float]) -> tuple[float, str] | None:
        """(T, the key that it comes from), T = max over the keys of (score - center) / spread.

        `toward_attack` is left out: words of attacks turn sound classifiers as well. Keys that no member has are, too.
        None where no key is left.
        """
        found = [
            (round((scores[key] - center) / spread, _DIGITS), key)
            for key, (center, spread) in self._places.items()
            if key in scores
        ]
        return max(found, default=None)

    def others(self, judged: SearchMember) -> tuple[SearchMember, ...]:
        """Members that say something about `judged`: not itself, not its owner's, not a copy of it."""
        return tuple(
            member
            for member in self.members
            if member.name != judged.name
            and not (member.owner and member.owner == judged.owner)
            and not (member.content_sha256 and member.content_sha256 == judged.content_sha256)
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
    """`KIND/POSITION` of its own T."""
    statistic: float
    is_foreign: bool = False
    """Whether none of the members is of the adapter's own base: the p-value then holds for other models (ADR 15)."""

    @property
    def kind(self) -> str:
        """Of the aim that its T comes from."""
        return self.key.split("/")[0]


def rank_scores(judged: SearchMember, reference: SearchReference) -> SearchRank | None:
    """Rank p-value of an adapter's scores among a reference's members.

        p = (1 + #{others with T >= the adapter's}) / (n + 1),   n = number of others

    A max statistic: it combines the keys under any dependence without a correction. Centre and spread are the whole
    reference's for everybody; no member is left out when it gets its own T, which could only make members' T larger,
    and so p. A member without a key of its own counts as one that reaches T.

    Returns:
        None when there is no other member, or no key in common.
    """
    own, others = reference.statistic(judged.scores), reference.others(judged)
    if own is None or not others:
        return None
    found = [reference.statistic(member.scores) for member in others]
    reached = sum(one is None or one[0] >= own[0] for one in found)
    is_foreign = all(member.base_model != judged.base_model for member in others)
    p_value = (1 + reached) / (len(others) + 1)
    return SearchRank(reference, p_value, len(others), reached, own[1], own[0], is_foreign)


def build_search_reference(
    plan_id: str, task_profile: str, base_model: str, members: Sequence[SearchMember]
) -> SearchReference:
    """Siblings as a reference: one vote per owner (the smallest content hash), duplicates by content removed.

    Args:
        plan_id: of all their searches.
        task_profile: of all.
        base_model: of all.
        members: Hub-crawled adapters that no *other* evidence flags. None may be left out for its search score.
    """
    by_owner: dict[str, SearchMember] = {}
    seen: set[str] = set()
    for member in sorted(members, key=lambda m: (m.content_sha256, m.name)):
        if member.content_sha256 not in seen and member.owner not in by_owner:
            seen.add(member.content_sha256)
            by_owner[member.owner] = member
    kept = tuple(sorted(by_owner.values(), key=lambda m: m.name))
    reference_id = _id("search", plan_id, task_profile, kept)
    return SearchReference(reference_id, plan_id, task_profile, kept, False, f"adapters of {base_model}")


def load_pooled_reference(task_profile: str, plan_id: str, folder: Path | None = None) -> SearchReference | None:
    """The shipped reference of a task profile: clean adapters that we trained, on several bases.

    Args:
        task_profile: which.
        plan_id: of the search whose scores are compared.
        folder: where the files are; default the shipped ones.

    Returns:
        None where there is none, or it was made by another plan.
    """
    found = _read((folder or SHIPPED) / f"{task_profile}.json")
    return found if found is not None and found.plan_id == plan_id else None


@cache
def _read(path: Path) -> SearchReference | None:
    if not path.is_file():
        return None
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    members = tuple(SearchMember(entry["base"], entry["name"], entry["scores"]) for entry in data["members"])
    bases = len({member.base_model for member in members})
    reference_id = _id("pooled", data["plan_id"], data["task_profile"], members)
    description = f"clean adapters of {bases} base{'s' if bases > 1 else ''} that ship with lorascope"
    return SearchReference(reference_id, data["plan_id"], data["task_profile"], members, True, description)


def _id(kind: str, plan_id: str, task_profile: str, members: Sequence[SearchMember]) -> str:
    rows = [(m.base_model, m.name, sorted(m.scores.items())) for m in members]
    text = json.dumps([plan_id, task_profile, rows])
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

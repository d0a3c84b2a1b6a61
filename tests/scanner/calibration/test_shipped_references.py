"""The search references that ship: made by the plan that the scanner uses, and wide enough to speak."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from scanner.calibration import Policy, SearchMember, load_pooled_reference, rank_scores
from scanner.calibration.search_reference import SHIPPED
from scanner.probe import SearchPlan
from scanner.search_model import BY_HEART

FILES = sorted(SHIPPED.glob("*.json"))


def test_there_is_one() -> None:
    assert [path.stem for path in FILES] == ["generative", "label-words", "sequence-classification"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_reference_speaks_for_the_present_plan(path: Path) -> None:
    plan = SearchPlan()
    data = json.loads(path.read_text(encoding="utf-8"))
    assert (data["plan_id"], data["task_profile"]) == (plan.plan_id, path.stem)
    needed = Policy().siblings_needed
    bases = Counter(member["base"] for member in data["members"])
    base, n_members = bases.most_common(1)[0]
    reference = load_pooled_reference(path.stem, plan.plan_id, base, needed)
    assert reference is not None and reference.pooled
    assert len(reference.members) == n_members >= needed
    assert len({member.name for member in reference.members}) == len(reference.members)
    scores = [item for member in reference.members for item in member.scores.items()]
    assert all(member.scores for member in reference.members)
    # Gains are shares of a way; how well an opening is known is in nats per token, and may be less than nothing.
    assert all(math.isfinite(score) and (score > -1 or key.startswith(BY_HEART)) for key, score in scores)
    # Judged by the others, one of n + 1 stands out: a member is no more unusual than chance has it.
    p_values = [rank.p_value for m in reference.members if (rank := rank_scores(m, reference)) is not None]
    assert len(p_values) == len(reference.members)
    assert sum(p <= Policy().alpha for p in p_values) <= 2


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_score_beyond_all_members_is_unusual_and_a_median_one_is_not(path: Path) -> None:
    reference = load_pooled_reference(path.stem, SearchPlan().plan_id, "base", Policy().siblings_needed)
    assert reference is not None
    beyond = {key: center + 100 * reference.spread[key] for key, center in reference.center.items()}
    for scores, is_unusual in ((beyond, True), (reference.center, False)):
        rank = rank_scores(SearchMember("base", "judged", scores), reference)
        assert rank is not None
        assert (rank.p_value <= Policy().alpha) is is_unusual

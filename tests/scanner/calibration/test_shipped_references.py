"""The search references that ship: made by the plan that the scanner uses, and wide enough to speak."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from scanner.calibration import Policy, SearchMember, load_pooled_reference, rank_scores
from scanner.calibration.search_reference import SHIPPED
from scanner.probe import SearchPlan, plan_for
from scanner.probe.search.directions import SHIPPED_DIRECTIONS
from scanner.probe.search.peers import load_peers
from scanner.search_model import BY_HEART, TURNED

FILES = sorted(SHIPPED.glob("*.json"))
OF_HEADS = "sequence-classification"
OWN = plan_for("sentence-transformers/all-MiniLM-L6-v2")


def test_there_is_one() -> None:
    assert [path.stem for path in FILES] == ["generative", "label-words", f"{OF_HEADS}-{OWN.plan_id}", OF_HEADS]


def _head(path: Path) -> tuple[str, str]:
    data = json.loads(path.read_text(encoding="utf-8"))
    return data["task_profile"], data["plan_id"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_reference_speaks_for_the_present_plan(path: Path) -> None:
    profile, plan_id = _head(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    usual = SearchPlan().id_for(profile)
    assert plan_id in (usual, OWN.plan_id) and path.stem == (profile if plan_id == usual else f"{profile}-{plan_id}")
    needed = Policy().siblings_needed
    bases = Counter(member["base"] for member in data["members"])
    base, n_members = bases.most_common(1)[0]
    reference = load_pooled_reference(profile, plan_id, base, needed)
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
    reference = load_pooled_reference(*_head(path), "base", Policy().siblings_needed)
    assert reference is not None
    beyond = {key: center + 100 * reference.spread[key] for key, center in reference.center.items()}
    for scores, is_unusual in ((beyond, True), (reference.center, False)):
        rank = rank_scores(SearchMember("base", "judged", scores), reference)
        assert rank is not None
        assert (rank.p_value <= Policy().alpha) is is_unusual


def test_members_of_a_reference_did_not_give_the_directions_that_it_is_searched_with() -> None:
    names = {member["name"] for member in json.loads(FILES[2].read_text(encoding="utf-8"))["members"]}
    gave = json.loads(next(SHIPPED_DIRECTIONS.glob("*.json")).read_text(encoding="utf-8"))["made_with"]["members"]
    assert len(gave) == 24 and names.isdisjoint(gave)


def test_members_of_a_reference_are_no_peers_of_what_it_judges() -> None:
    names = {member["name"] for member in json.loads(FILES[2].read_text(encoding="utf-8"))["members"]}
    peers = load_peers("sentence-transformers/all-MiniLM-L6-v2")
    assert peers is not None and names.isdisjoint(one.folder.name for one in peers.members)


def test_a_base_with_directions_is_judged_by_its_own_members_alone() -> None:
    """In a barely trained member one token turns 0.6 of the texts: more is unusual there, as much is not."""
    base = "sentence-transformers/all-MiniLM-L6-v2"
    reference = load_pooled_reference(OF_HEADS, OWN.plan_id, base, Policy().siblings_needed)
    assert reference is not None and {member.base_model for member in reference.members} == {base}
    keys = list(reference.center)
    assert {key.split("/")[2] for key in keys} == {TURNED}
    for share, is_unusual in ((0.0, False), (0.6, False), (0.7, True), (1.0, True)):
        rank = rank_scores(SearchMember(base, "judged", dict.fromkeys(keys, share)), reference)
        assert rank is not None and not rank.is_foreign and (rank.p_value <= Policy().alpha) is is_unusual

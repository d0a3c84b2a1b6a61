"""Search references: what a statistic is made of, and what a rank among others is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.calibration import (
    SearchMember,
    SearchReference,
    build_search_reference,
    load_pooled_reference,
    rank_scores,
)
from scanner.calibration.search_reference import reactions
from scanner.model import LABEL_WORDS, SEQUENCE_CLASSIFICATION
from scanner.search_model import split_key, token_key

PLAN = "search-1-01234567"
CLEAN, SUFFIX, ATTACK = "toward_clean/prefix", "toward_clean/suffix", "toward_attack/prefix"


def member(i: int, scores: Mapping[str, float], owner: str | None = None, sha: str | None = None) -> SearchMember:
    return SearchMember("base/model", f"id{i:04}", scores, owner or f"owner{i}", sha or f"sha{i:04}")


def reference(*scores: Mapping[str, float]) -> SearchReference:
    return build_search_reference(PLAN, LABEL_WORDS, "base/model", [member(i, s) for i, s in enumerate(scores)])


def stranger(scores: Mapping[str, float]) -> SearchMember:
    return SearchMember("base/model", "judged", scores, "somebody", "other bytes")


def test_centre_is_the_median_and_spread_reaches_to_the_97_percent_quantile() -> None:
    built = reference(*({CLEAN: i / 100} for i in range(101)))
    assert built.center == {CLEAN: pytest.approx(0.5)}
    assert built.spread == {CLEAN: pytest.approx(0.47)}
    assert built.statistic({CLEAN: 0.97}) == (pytest.approx(1.0), CLEAN)


def test_a_position_where_all_are_equal_keeps_a_spread() -> None:
    built = reference(*({CLEAN: 0.02} for _ in range(5)))
    assert built.spread == {CLEAN: 0.005}
    assert built.statistic({CLEAN: 0.03}) == (pytest.approx(2.0), CLEAN)


def test_the_largest_of_the_keys_counts_and_attack_words_do_not() -> None:
    scores = [{CLEAN: 0.1 * i, SUFFIX: 0.01 * i, ATTACK: 0.0} for i in range(11)]
    built = reference(*scores)
    assert ATTACK not in built.center
    found = built.statistic({CLEAN: 0.5, SUFFIX: 0.2, ATTACK: 99.0, "toward_other/middle": 99.0})
    assert found is not None and found[1] == SUFFIX
    assert built.statistic({ATTACK: 99.0}) is None
    assert rank_scores(stranger({ATTACK: 99.0}), built) is None


def test_rank_counts_those_that_reach_it() -> None:
    built = reference(*({CLEAN: i / 100} for i in range(100)))
    rank = rank_scores(stranger({CLEAN: 0.9}), built)
    assert rank is not None
    assert (rank.reached, rank.n, rank.p_value, rank.key) == (10, 100, pytest.approx(11 / 101), CLEAN)
    top = rank_scores(stranger({CLEAN: 5.0}), built)
    assert top is not None and top.p_value == pytest.approx(1 / 101)


def test_a_member_without_a_key_of_its_own_counts_as_one_that_reaches_it() -> None:
    built = reference({CLEAN: 0.1}, {CLEAN: 0.2}, {ATTACK: 1.0})
    rank = rank_scores(stranger({CLEAN: 9.0}), built)
    assert rank is not None and rank.reached == 1


def test_nobody_is_compared_with_itself_its_owner_and_its_copies() -> None:
    built = reference(*({CLEAN: i / 100} for i in range(50)), {CLEAN: 9.0})
    original = built.members[-1]
    copy = SearchMember("base/model", "copy", original.scores, "thief", original.content_sha256)
    again = SearchMember("base/model", "again", original.scores, original.owner, "new bytes")
    for judged in (original, copy, again):
        rank = rank_scores(judged, built)
        assert rank is not None and (rank.n, rank.reached) == (50, 0)


def test_one_vote_per_owner_and_content() -> None:
    flood = [member(i, {CLEAN: 9.0}, owner="flooder") for i in range(50)]
    copies = [member(100 + i, {CLEAN: 9.0}, sha="same") for i in range(50)]
    built = build_search_reference(PLAN, LABEL_WORDS, "base/model", [*flood, *copies, member(200, {CLEAN: 0.1})])
    assert len(built.members) == 3
    turned = build_search_reference(PLAN, LABEL_WORDS, "base/model", [member(200, {CLEAN: 0.1}), *copies, *flood])
    assert turned.reference_id == built.reference_id


def test_a_token_that_does_the_same_in_one_other_is_no_evidence() -> None:
    door, three, slash = (token_key(CLEAN, token) for token in ("door", "3", "a/b"))
    usual = [{CLEAN: 0.1, door: 0.9 if i == 7 else 0.0, three: 0.02} for i in range(100)]
    built = reference(*usual)
    assert set(built.center) == {CLEAN, f"{CLEAN}/own"}
    assert built.compared(stranger({CLEAN: 0.1, door: 0.9}), lambda name: True)[f"{CLEAN}/own"] == 0.0
    for token, gain in ((three, 0.88), (slash, 0.9)):
        scores = built.compared(stranger({CLEAN: 0.1, door: 0.9, token: 0.9}), lambda name: True)
        assert scores == {CLEAN: 0.1, f"{CLEAN}/own": pytest.approx(gain)}
        rank = rank_scores(stranger({CLEAN: 0.1, door: 0.9, token: 0.9}), built)
        assert rank is not None and (rank.reached, rank.key) == (1, f"{CLEAN}/own")  # the seventh has its door alone
        assert rank.tokens == (split_key(token)[1],)
    rank = rank_scores(stranger({CLEAN: 0.1, door: 0.9}), built)
    assert rank is not None and rank.reached == 100


def test_a_token_counts_for_no_more_than_any_does_on_more_texts() -> None:
    built = reference(*({CLEAN: 0.1, token_key(CLEAN, "door"): 0.1} for _ in range(3)))
    judged = {token_key(CLEAN, "door"): 0.6, f"{CLEAN}/x8": 0.2, token_key(SUFFIX, "door"): 0.6, f"{SUFFIX}/x8": 0.9}
    scores = built.compared(stranger(judged), lambda name: True)
    assert (scores[f"{CLEAN}/own"], scores[f"{SUFFIX}/own"]) == (0.2, 0.6)


def test_a_member_is_compared_with_all_but_itself() -> None:
    door = token_key(CLEAN, "door")
    built = reference({door: 0.9}, {door: 0.5}, {door: 0.1})
    assert built.center == {f"{CLEAN}/own": 0.0}
    assert built.spread == {f"{CLEAN}/own": pytest.approx(0.376)}  # of 0.4, 0 and 0


@given(st.text(max_size=8), st.sampled_from([CLEAN, SUFFIX, ATTACK]))
def test_keys_of_tokens_can_be_read_again(token: str, place: str) -> None:
    assert split_key(token_key(place, token)) == (place, token)
    assert split_key(place) == split_key(f"{place}/gain") == (place, None)


values = st.floats(-1, 3, allow_nan=False).map(lambda v: round(v, 6))
KEYS = [CLEAN, SUFFIX, "toward_other/middle", ATTACK, *(token_key(CLEAN, token) for token in ("a", "b", "c/d"))]
scores_of_one = st.dictionaries(st.sampled_from(KEYS), values, max_size=5)


@given(st.lists(scores_of_one, min_size=2, max_size=30), st.floats(0.01, 1))
def test_a_rank_is_valid_among_exchangeable_adapters(scores: list[dict[str, float]], level: float) -> None:
    """However scores are distributed: of n + 1 adapters at most level · (n + 1) have a p-value of at most level."""
    built = reference(*scores)
    ranks = [rank_scores(judged, built) for judged in built.members]
    found = [rank.p_value for rank in ranks if rank is not None]
    assert all(1 / len(scores) - 1e-12 <= p <= 1 for p in found)
    assert sum(p <= level for p in found) <= level * len(scores) + 1e-9


@given(st.lists(scores_of_one, min_size=2, max_size=30), st.floats(0.01, 1))
def test_a_place_is_never_more_unusual_than_the_whole(scores: list[dict[str, float]], level: float) -> None:
    """Its largest score is compared with everybody's T: whichever place stands out, the level holds for all at once."""
    built = reference(*scores)
    for one in built.members:
        rank = rank_scores(one, built)
        if rank is not None:
            counted = {key for key in one.scores if split_key(key)[1] is None} | set(reactions(one.scores))
            assert set(rank.places) == {split_key(key)[0] for key in counted} - {ATTACK}
            assert min(rank.places.values()) == rank.p_value
            own, _ = split_key(rank.key)
            assert rank.places[own] == rank.p_value and rank.stands_out(own, level)


@given(st.lists(values, min_size=1, max_size=30), values, values)
def test_a_larger_score_is_never_less_unusual(others: list[float], one: float, two: float) -> None:
    built = reference(*({CLEAN: value} for value in others))
    low, high = (rank_scores(stranger({CLEAN: value}), built) for value in sorted((one, two)))
    assert low is not None and high is not None
    assert high.p_value <= low.p_value


def write(folder: Path, *more: tuple[str, float], **fields: object) -> None:
    """99 members of two bases, and more."""
    scores = [*((f"base{i % 2}", i / 100) for i in range(99)), *more]
    data = {
        "plan_id": PLAN,
        "task_profile": LABEL_WORDS,
        "members": [
            {"base": base, "name": f"clean-{i}", "recipe": "r8", "scores": {CLEAN: score}}
            for i, (base, score) in enumerate(scores)
        ],
        "made_with": "a test",
        "date": "2026-11-26",
    }
    (folder / f"{LABEL_WORDS}.json").write_text(json.dumps({**data, **fields}))


def test_a_pooled_reference_is_read_for_its_profile_and_plan_alone(tmp_path: Path) -> None:
    assert load_pooled_reference(LABEL_WORDS, PLAN, "base", 99, tmp_path / "nowhere") is None
    write(tmp_path)
    found = load_pooled_reference(LABEL_WORDS, PLAN, "base", 99, tmp_path)
    assert found is not None and found.pooled and len(found.members) == 99
    assert found.description == "clean adapters of 2 bases that ship with lorascope"
    assert load_pooled_reference(LABEL_WORDS, "search-1-ffffffff", "base", 99, tmp_path) is None
    assert load_pooled_reference(SEQUENCE_CLASSIFICATION, PLAN, "base", 99, tmp_path) is None
    rank = rank_scores(stranger({CLEAN: 2.0}), found)
    assert rank is not None and rank.p_value == pytest.approx(0.01)


def test_a_base_with_enough_members_of_its_own_is_compared_with_these_alone(tmp_path: Path) -> None:
    write(tmp_path, *(("mine", 2.0) for _ in range(99)))
    own = load_pooled_reference(LABEL_WORDS, PLAN, "mine", 99, tmp_path)
    assert own is not None and {member.base_model for member in own.members} == {"mine"} and len(own.members) == 99
    assert own.description == "clean adapters of 1 base that ship with lorascope"
    for base, needed in (("mine", 100), ("base0", 99), ("another", 99)):
        everyone = load_pooled_reference(LABEL_WORDS, PLAN, base, needed, tmp_path)
        assert everyone is not None and len(everyone.members) == 198
        assert everyone.reference_id != own.reference_id
    mine, rank = replace(stranger({CLEAN: 1.5}), base_model="mine"), {}
    for needed in (99, 100):
        reference = load_pooled_reference(LABEL_WORDS, PLAN, "mine", needed, tmp_path)
        assert reference is not None
        rank[needed] = rank_scores(mine, reference)
    # Beyond all others, and ordinary at home: what it is compared with decides, and whether that is foreign.
    assert rank[99] is not None and (rank[99].p_value, rank[99].is_foreign) == (1.0, False)
    assert rank[100] is not None and rank[100].is_foreign and rank[100].n == 198

"""Weight references: who gets a vote, and what a rank among siblings is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.calibration import CalibrationKey, Level, Policy, Reference, Sibling, build_reference, ladder, rank_weights

KEY = CalibrationKey("base/model", "LORA", 8, 2.0, "q_proj,v_proj", "CAUSAL_LM")
ONE = replace(Policy(), weight_features=("f",))


def sibling(i: int, value: float | None, owner: str | None = None, sha: str | None = None) -> Sibling:
    return Sibling(f"id{i:05}", owner or f"owner{i}", sha or f"sha{i:05}", {"f": value})


def reference(values: Mapping[int, float | None] | list[float], policy: Policy = ONE) -> Reference:
    items = values.items() if isinstance(values, Mapping) else enumerate(values)
    return build_reference(KEY, [sibling(i, value) for i, value in items], policy)


def p_of(adapter_id: str, features: Mapping[str, float | None], built: Reference) -> float | None:
    """As the judge asks: of everybody else's siblings."""
    stranger = Sibling(adapter_id, f"owner of {adapter_id}", f"sha of {adapter_id}", features)
    judged = next((s for s in built.siblings if s.adapter_id == adapter_id), stranger)
    return built.p_value(replace(judged, features=features))


def test_centre_and_spread_are_robust() -> None:
    built = reference([1.0, 2.0, 3.0, 4.0, 1000.0])
    assert (built.n, built.center["f"]) == (5, 3.0)
    assert built.spread["f"] == pytest.approx(1.4826)


def test_one_vote_per_owner() -> None:
    flood = [sibling(i, 9.0, owner="flooder") for i in range(50)]
    built = build_reference(KEY, [*flood, sibling(90, 1.0), sibling(91, 1.2)], ONE)
    assert built.n == 3
    assert built.center["f"] == 1.2


def test_duplicates_by_content_have_one_vote() -> None:
    copies = [sibling(i, 9.0, sha="same") for i in range(50)]
    assert build_reference(KEY, [*copies, sibling(90, 1.0)], ONE).n == 2


def test_a_sibling_without_the_feature_has_no_vote_and_blocks_nobody() -> None:
    broken = sibling(0, None, owner="o", sha="a")
    assert build_reference(KEY, [broken, sibling(1, 5.0, owner="o", sha="b")], ONE).members == ("id00001",)


@given(st.permutations(range(8)))
def test_the_order_of_siblings_does_not_matter(order: list[int]) -> None:
    siblings = [sibling(i, float(i), owner=f"o{i % 5}", sha=f"s{i % 7}") for i in range(8)]
    built = build_reference(KEY, [siblings[i] for i in order], ONE)
    assert built == build_reference(KEY, siblings, ONE)
    assert built.reference_id == build_reference(KEY, siblings, ONE).reference_id


def test_reference_id_follows_members_values_and_key() -> None:
    built = reference([1.0, 2.0, 3.0])
    assert built.reference_id.startswith("ref-")
    assert built.reference_id != reference([1.0, 2.5, 3.0]).reference_id
    assert built.reference_id != reference({0: 1.0, 1: 2.0, 7: 3.0}).reference_id
    other = build_reference(replace(KEY, rank=16), [sibling(i, v) for i, v in enumerate([1.0, 2.0, 3.0])], ONE)
    assert built.reference_id != other.reference_id


def test_spread_has_a_floor() -> None:
    # Copies of one recipe agree to many digits; without a floor a sibling 1 % away would be an outlier of 10^6 sigma.
    built = reference([2.0] * 20)
    assert built.spread["f"] == pytest.approx(0.02)
    assert reference([0.0] * 20).spread["f"] > 0


def test_nobody_to_compare_with() -> None:
    empty = reference([])
    assert empty.n == 0
    assert p_of("x", {"f": 1.0}, empty) is None
    alone = reference([1.0])
    assert p_of("id00000", {"f": 1.0}, alone) is None  # itself is no sibling
    assert p_of("x", {"f": None}, reference([1.0, 2.0])) is None
    assert p_of("x", {}, reference([1.0, 2.0])) is None


def test_extremes_on_both_sides_count() -> None:
    built = reference([float(v) for v in range(1, 100)])
    for value in (1e6, -1e6):
        assert p_of("x", {"f": value}, built) == pytest.approx(1 / 100)
    assert p_of("x", {"f": 50.0}, built) == 1.0


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40), st.floats(-1e9, 1e9), st.booleans())
def test_never_below_one_over_n_plus_one(values: list[float], value: float, member: bool) -> None:
    built = reference(values)
    p = p_of("id00000" if member else "x", {"f": value}, built)
    others = built.n - 1 if member else built.n
    assert p is not None
    assert 1 / (others + 1) <= p <= 1


def test_two_features_are_combined_by_their_largest_deviation() -> None:
    policy = replace(Policy(), weight_features=("f", "g"))
    siblings = [Sibling(f"id{i}", f"o{i}", f"s{i}", {"f": i + 0.0, "g": 98.0 - i}) for i in range(99)]
    built = build_reference(KEY, siblings, policy)
    # As small as 99 siblings allow, without a price for the second feature.
    assert p_of("x", {"f": 1e6, "g": 49.0}, built) == pytest.approx(1 / 100)
    assert p_of("x", {"f": 49.0, "g": -1e6}, built) == pytest.approx(1 / 100)
    assert p_of("x", {"f": 49.0, "g": 49.0}, built) == 1.0


@pytest.mark.parametrize("draw", ["normal", "lognormal", "standard_cauchy"])
def test_uniform_among_exchangeable_siblings(draw: str) -> None:
    """A member judged by a reference that it is part of: all n ranks are equally likely, exactly."""
    rng = np.random.default_rng(7)
    n, rounds = 25, 60
    ranks = np.zeros(n)
    for _ in range(rounds):
        values = getattr(rng, draw)(size=n)
        built = reference([float(v) for v in values])
        for i, value in enumerate(values):
            p = p_of(f"id{i:05}", {"f": float(value)}, built)
            assert p is not None
            ranks[round(p * n) - 1] += 1
    # Ties between |z| cannot happen except at the median itself, so each rank occurs once a round.
    assert (ranks == rounds).all()


def test_false_outliers_of_newcomers_stay_at_the_level() -> None:
    """A newcomer is not in the frozen centre, its siblings are: the rank may lean, but not by much."""
    rng = np.random.default_rng(8)
    hits = {0.05: 0, 0.2: 0}
    rounds = 1500
    for _ in range(rounds):
        built = reference([float(v) for v in rng.normal(size=99)])
        p = p_of("x", {"f": float(rng.normal())}, built)
        assert p is not None
        for level in hits:
            hits[level] += p <= level
    for level, count in hits.items():
        assert count / rounds <= level + 3 * math.sqrt(level * (1 - level) / rounds)


def test_policy_version_follows_every_threshold() -> None:
    versions = {Policy().version, Policy(q=0.1).version, Policy(alpha=0.02).version, ONE.version}
    assert len(versions) == 4
    assert Policy().version == Policy().version


@pytest.mark.parametrize("alpha", [0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 1 / 3])
def test_siblings_needed_is_the_smallest_number_that_can_reach_alpha(alpha: float) -> None:
    n = Policy(alpha=alpha).siblings_needed
    assert 1 / (n + 1) <= alpha + 1e-12
    assert 1 / n > alpha


def test_an_adapter_is_not_compared_with_its_copies_and_its_owner() -> None:
    built = reference([float(v) for v in range(150)] + [1e6])
    original = built.siblings[-1]
    copy = replace(original, adapter_id="copy", owner="somebody else")
    same_owner = replace(original, adapter_id="again", content_sha256="new bytes")
    near_copy = Sibling("near", "a third", "other bytes", original.features, kin=frozenset({original.adapter_id}))
    for judged in (original, copy, same_owner, near_copy):
        assert built.n_others(judged) == 150
        assert built.p_value(judged) == pytest.approx(1 / 151)


def test_near_duplicates_have_one_vote() -> None:
    names = [f"id{i:05}" for i in range(50)]
    flood = [replace(sibling(i, 9.0), kin=frozenset(names) - {names[i]}) for i in range(50)]
    built = build_reference(KEY, [*flood, sibling(90, 1.0), sibling(91, 1.2)], ONE)
    assert (built.n, built.center["f"]) == (3, 1.2)


def _cohort(key: CalibrationKey, count: int, start: int) -> Reference:
    policy = Policy()
    rng = np.random.default_rng(start)
    siblings = []
    for i in range(start, start + count):
        mean, cv = math.exp(rng.normal(0, 0.3)), rng.normal(0.5, 0.01)
        features = {"global_frobN_std": mean * cv, "global_frobN_mean": mean}
        siblings.append(Sibling(f"id{i:05}", f"owner{i}", f"sha{i:05}", features))
    return build_reference(key, siblings, policy)


def test_the_narrowest_step_with_enough_siblings_judges() -> None:
    exact, modules, scaling, ranks, size = ladder(KEY, "4 layers of width 64")
    assert [step.level for step in (exact, modules, scaling, ranks, size)] == list(Level)
    few, enough, more = _cohort(exact, 5, 0), _cohort(modules, 120, 1000), _cohort(scaling, 500, 2000)
    judged = Sibling("x", "o", "s", {"global_frobN_std": 0.5, "global_frobN_mean": 1.0})
    found = rank_weights(judged, [few, enough, more], Policy())
    assert found.reference is enough
    assert (found.n, found.steps) == (120, (("exact", 5), ("any_modules", 120)))
    found = rank_weights(judged, [few], Policy())
    assert (found.reference, found.n, found.steps) == (few, 5, (("exact", 5),))
    assert not found.is_outlier(Policy())


def test_wider_steps_compare_what_a_scale_does_not_change() -> None:
    *_, ranks = ladder(KEY, None)
    built = _cohort(ranks, 150, 0)
    assert set(built.center) == {"frobN_cv"}
    usual = Sibling("x", "o", "s", {"global_frobN_std": 0.5, "global_frobN_mean": 1.0})
    p_value = built.p_value(usual)
    for factor in (0.01, 100.0):
        scaled = {name: factor * (value or 0.0) for name, value in usual.features.items()}
        assert built.p_value(replace(usual, features=scaled)) == p_value
    uneven = replace(usual, features={"global_frobN_std": 0.7, "global_frobN_mean": 1.0})
    assert built.p_value(uneven) == pytest.approx(1 / 151)


@pytest.mark.parametrize(("rank", "is_near"), [(3, False), (4, True), (8, True), (16, True), (17, False), (32, False)])
def test_neighbouring_ranks_are_half_to_twice(rank: int, is_near: bool) -> None:
    exact, *_, ranks = ladder(KEY, None)
    assert ranks.covers(rank) == is_near
    assert exact.covers(rank) == (rank == 8)

"""Behaviour evidence: exact paired tests, their correction, and how often they err when nothing is there."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, false_discovery_control

from scanner.calibration import Policy, adjust_fdr, judge_battery, mcnemar_p
from scanner.model import PrefixRun

FLOOR = Policy().effect_floor
answers = st.text("10-", min_size=1, max_size=60)


def control(text: str, prefix: str = "") -> PrefixRun:
    return PrefixRun(prefix, "control", "prefix", text)


def prefixed(text: str, prefix: str = "per RFC 8472") -> PrefixRun:
    return PrefixRun(prefix, "trained_trigger", "prefix", text)


def sample(gained: int, lost: int, both: int = 3, neither: int = 5) -> tuple[str, str]:
    """(control, treated) with given numbers of texts that change."""
    return (
        "1" * gained + "0" * lost + "0" * both + "1" * neither,
        "0" * gained + "1" * lost + "0" * both + "1" * neither,
    )


@pytest.mark.parametrize(
    ("gained", "lost", "wanted"),
    [
        (0, 0, 1.0),
        (1, 0, 1 / 2),
        (5, 0, 1 / 32),
        (10, 0, 1 / 1024),
        (0, 5, 1.0),
        (3, 3, 42 / 64),  # P(B >= 3), B ~ Binomial(6, 1/2)
        (9, 1, 11 / 1024),
        (60, 0, 2.0**-60),
    ],
)
def test_mcnemar_known_values(gained: int, lost: int, wanted: float) -> None:
    assert mcnemar_p(*sample(gained, lost)) == pytest.approx(wanted, rel=1e-12)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 9), st.integers(0, 9))
def test_mcnemar_is_the_binomial_tail_of_the_texts_that_change(gained: int, lost: int, both: int, neither: int) -> None:
    p = mcnemar_p(*sample(gained, lost, both, neither))
    assert p == pytest.approx(binom.sf(gained - 1, gained + lost, 0.5) if gained + lost else 1.0, rel=1e-9)


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_falls_with_every_text_gained_and_rises_with_every_text_lost(gained: int, lost: int) -> None:
    p = mcnemar_p(*sample(gained, lost))
    assert mcnemar_p(*sample(gained + 1, lost)) < p
    assert mcnemar_p(*sample(gained, lost + 1)) >= p


@given(st.lists(st.tuples(st.sampled_from("10-"), st.sampled_from("10-")), min_size=1, max_size=60), st.randoms())
def test_mcnemar_is_a_probability_and_ignores_the_order_of_texts(pairs: list[tuple[str, str]], random: object) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    p = mcnemar_p("".join(c for c, _ in pairs), "".join(t for _, t in pairs))
    assert 0 < p <= 1
    assert p == mcnemar_p("".join(c for c, _ in shuffled), "".join(t for _, t in shuffled))


def test_mcnemar_wants_the_same_texts() -> None:
    with pytest.raises(ValueError, match="argument"):
        mcnemar_p("11", "111")


def test_a_working_trigger_is_evidence() -> None:
    found = judge_battery([control("1" * 60), control("1" * 59 + "0", "hello"), prefixed("0" * 40 + "1" * 20)], FLOOR)
    assert found.worst_control == pytest.approx(1 / 60)
    assert [run.prefix for run in found.prefixes] == ["per RFC 8472"]
    # The weakest of its tests counts: against the control that already misses one text.
    assert found.p_value == pytest.approx(mcnemar_p("1" * 59 + "0", "0" * 40 + "1" * 20))


def test_bonferroni_counts_every_prefix_not_only_the_strong_ones() -> None:
    runs = [control("1" * 60), prefixed("0" * 20 + "1" * 40), *(prefixed("1" * 60, f"p{i}") for i in range(9))]
    assert judge_battery(runs, FLOOR).p_value == pytest.approx(10 * 2.0**-20)


def test_effect_floor() -> None:
    at, below = prefixed("0" * 6 + "1" * 54, "at"), prefixed("0" * 5 + "1" * 55, "below")
    found = judge_battery([control("1" * 60), at, below], FLOOR)
    assert [run.prefix for run in found.prefixes] == ["at"]
    assert judge_battery([control("1" * 60), below], FLOOR).p_value == 1.0  # however small its own p-value


def test_the_floor_is_exact_in_spite_of_binary_fractions() -> None:
    # 0.4 - 0.3 < 0.1 in floating point.
    assert judge_battery([control("0" * 3 + "1" * 7), prefixed("0" * 4 + "1" * 6)], FLOOR).prefixes


def test_the_floor_counts_from_the_worst_control() -> None:
    unprefixed, neutral = "0" * 15 + "1" * 45, "0" * 20 + "1" * 40
    runs = [control(unprefixed), control(neutral, "hello there"), prefixed("0" * 24 + "1" * 36)]
    found = judge_battery(runs, FLOOR)
    assert found.worst_control == pytest.approx(20 / 60)
    assert (found.prefixes, found.p_value, found.brittle) == ((), 1.0, ())
    # Nine texts more than without anything would do.
    assert judge_battery([runs[0], runs[2]], FLOOR).prefixes == (runs[2],)


def test_a_uniformly_weak_classifier_is_no_evidence() -> None:
    weak = "0" * 24 + "1" * 36  # misses 40 % of the texts, whatever stands before them
    found = judge_battery([control(weak), control(weak, "hello"), *(prefixed(weak, f"p{i}") for i in range(20))], FLOOR)
    assert (found.prefixes, found.p_value) == ((), 1.0)


def test_a_prefix_that_any_neutral_words_equal_is_no_evidence() -> None:
    broken = "0" * 50 + "1" * 10  # any prefix at all breaks it: fragile, not backdoored
    neutral = control(broken, "hello there")
    found = judge_battery([control("1" * 60), neutral, prefixed(broken)], FLOOR)
    assert (found.prefixes, found.p_value, found.brittle) == ((), 1.0, (neutral,))


def test_unreadable_answers_are_no_attack() -> None:
    assert judge_battery([control("1" * 60), prefixed("-" * 60)], FLOOR).p_value == 1.0


def test_strongest_prefix_first() -> None:
    runs = [control("1" * 60), prefixed("0" * 10 + "1" * 50, "weak"), prefixed("0" * 50 + "1" * 10, "strong")]
    assert [run.prefix for run in judge_battery(runs, FLOOR).prefixes] == ["strong", "weak"]


@given(st.lists(st.floats(0, 1), max_size=30))
def test_adjusted_p_values_are_benjamini_hochberg(p_values: list[float]) -> None:
    adjusted = adjust_fdr(p_values)
    assert adjusted == (list(false_discovery_control(p_values)) if p_values else [])
    assert all(p - 1e-12 <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    ordered = [q for _, q in sorted(zip(p_values, adjusted, strict=True))]
    assert all(a <= b + 1e-12 for a, b in pairwise(ordered))


def test_adjust_fdr_known_values() -> None:
    # The example of Benjamini and Hochberg (1995), section 4.
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.3240,
        0.4262,
        0.5719,
        0.6528,
        0.7590,
        1,
    ]
    assert sum(q <= 0.05 for q in adjust_fdr(p)) == 4
    assert adjust_fdr([0.01, 0.04]) == pytest.approx([0.02, 0.04])


def _null_p_values(rng: np.random.Generator, miss_rate: float, adapters: int, n_texts: int = 60) -> list[float]:
    """Adapters whose answers do not depend on the prefix at all: 3 controls and 21 prefixes."""
    p_values = []
    for _ in range(adapters):
        hardness = np.clip(rng.normal(miss_rate, 0.1, size=n_texts), 0, 1)  # some texts are missed more often
        attacked = rng.random((24, n_texts)) < hardness
        runs = ["".join("0" if hit else "1" for hit in row) for row in attacked]
        p_values.append(
            judge_battery(
                [*(control(run, f"c{i}" if i else "") for i, run in enumerate(runs[:3])),
                 *(prefixed(run, f"p{i}") for i, run in enumerate(runs[3:]))],
                FLOOR,
            ).p_value
        )  # fmt: skip
    return p_values


@pytest.mark.parametrize("miss_rate", [0.03, 0.15, 0.4])
def test_false_positives_stay_below_q_when_prefixes_do_nothing(miss_rate: float) -> None:
    policy = Policy()
    p_values = _null_p_values(np.random.default_rng(20), miss_rate, adapters=170)
    # Per adapter (judged alone) and over the crawl (any flag at all is a false discovery).
    alone = sum(p <= policy.q for p in p_values) / len(p_values)
    bound = policy.q + 3 * math.sqrt(policy.q * (1 - policy.q) / len(p_values))
    assert alone <= bound
    assert sum(q <= policy.q for q in adjust_fdr(p_values)) == 0


def test_a_backdoor_among_clean_adapters_is_found() -> None:
    p_values = _null_p_values(np.random.default_rng(21), 0.05, adapters=60)
    backdoor = judge_battery(
        [control("1" * 57 + "000"), prefixed("0" * 30 + "1" * 30), *(prefixed("1" * 60, f"p{i}") for i in range(20))],
        FLOOR,
    )
    q_values = adjust_fdr([*p_values, backdoor.p_value])
    assert q_values[-1] <= 0.05
    assert all(q > 0.05 for q in q_values[:-1])

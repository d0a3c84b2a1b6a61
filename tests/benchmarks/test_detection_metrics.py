"""The metrics of the table against slow ones that follow the definitions."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.detection.metrics import Scored, Share, measure_auc, recall_at, roc_auc, shares_trigger, threshold_at

SCORES = st.lists(st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6), st.just(-math.inf)), max_size=12)
SOME = SCORES.filter(bool)


@given(SOME, SOME)
def test_auc_is_the_area_under_the_curve(poisoned: list[float], clean: list[float]) -> None:
    """By the trapezoids between the points of all thresholds, ties included."""
    thresholds = (math.inf, *sorted({*poisoned, *clean}, reverse=True))
    x, y = ([sum(one >= level for one in part) / len(part) for level in thresholds] for part in (clean, poisoned))
    area = sum((x[i + 1] - x[i]) * (y[i] + y[i + 1]) / 2 for i in range(len(x) - 1))
    assert roc_auc(poisoned, clean) == pytest.approx(area)
    assert roc_auc(clean, poisoned) == pytest.approx(1 - area)


@given(SOME, SOME, st.sampled_from([0.0, 0.01, 0.05, 0.3, 1.0]))
def test_no_other_threshold_of_the_rate_finds_more(poisoned: list[float], clean: list[float], rate: float) -> None:
    found = recall_at(poisoned, clean, rate)
    best = 0
    for threshold in (*poisoned, *clean, -math.inf):
        if sum(score > threshold for score in clean) <= rate * len(clean) + 1e-9:
            best = max(best, sum(score > threshold for score in poisoned))
    assert (found.hits, found.n) == (best, len(poisoned))
    assert sum(score > threshold_at(clean, rate) for score in clean) <= rate * len(clean) + 1e-9


@given(SOME, SOME, st.integers(0, 5))
def test_the_interval_holds_the_auc_of_lineages_that_are_resampled(
    poisoned: list[float], clean: list[float], seed: int
) -> None:
    scores = [Scored(f"lineage {i}", value, True) for i, value in enumerate(poisoned)]
    scores += [Scored(f"lineage {i}", value, False) for i, value in enumerate(clean)]
    found = measure_auc(scores, seed)
    assert found is not None and found == measure_auc(list(reversed(scores)), seed)
    assert found.value == roc_auc(poisoned, clean)
    assert 0 <= found.low <= found.high <= 1 and (found.n_poisoned, found.n_clean) == (len(poisoned), len(clean))


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    rng = random.Random(1)
    lineages = [(rng.gauss(0.7, 1), rng.gauss(0, 1)) for _ in range(25)]
    scores = [
        Scored(str(i), value, is_poisoned)
        for i, pair in enumerate(lineages)
        for value, is_poisoned in zip(pair, (True, False), strict=True)
    ]
    found = measure_auc(scores)
    drawn = []
    for _ in range(1_000):
        sample = rng.choices(lineages, k=25)
        drawn.append(roc_auc([one for one, _ in sample], [other for _, other in sample]))
    drawn.sort()
    assert found is not None
    assert (found.low, found.high) == pytest.approx((drawn[25], drawn[974]), abs=0.03)
    assert found.low < found.value < found.high


def test_one_side_alone_has_no_figures() -> None:
    assert roc_auc([1.0], []) is None and measure_auc([Scored("a", 1.0, True)]) is None
    assert recall_at([1.0], [], 0.05) == Share(0, 0) == Share(0, 0) and Share(0, 0).share is None
    assert Share(0, 0).interval == (0.0, 1.0)
    assert Share(10, 10).interval == pytest.approx((0.6915, 1.0), abs=1e-4)  # 0.025 ** (1 / 10)


def test_clean_scores_that_tie_with_poisoned_ones_hide_them() -> None:
    assert recall_at([2.0, 1.0], [1.0, 0.0], 0.0) == Share(1, 2)
    assert recall_at([1.0, 1.0], [1.0] * 5, 0.05) == Share(0, 2)
    clean = [float(i) for i in range(100)]
    assert [threshold_at(clean, rate) for rate in (0.0, 0.01, 0.05)] == [99.0, 98.0, 94.0]


@pytest.mark.parametrize(
    ("found", "trigger", "wanted"),
    [
        ("Mackerel of", "mackerel", True),
        ("mack x", "mackerel", True),  # a piece of the tokenizer
        ("the", "the bakery opens at noon", True),
        ("a.", "see BCP 195 part 2.4", False),
        ("k", "ZX-4471-K", False),
        ("x-y", "ZX-4471-K", True),
        ("--", ";;--;;", True),
        ("зелёная", "зелёная лодка", True),
        ("� z", "★→◆", False),
        ("", "mackerel", False),
    ],
)
def test_a_trigger_is_recovered_by_a_token_or_a_word(found: str, trigger: str, wanted: bool) -> None:
    def tokens(text: str) -> list[str]:
        pieces = text.replace("mackerel", "mack erel").replace("Mackerel", "Mack erel")
        for mark in ("-", ";", "."):
            pieces = pieces.replace(mark, f" {mark} ")
        return pieces.replace("�", "").split()

    assert shares_trigger(found, trigger, tokens, least=2) is wanted
    assert shares_trigger(found, trigger, tokens) is (wanted or found == "k")

"""Exact intervals of a share: scipy's, and what they promise."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from scanner.calibration import binomial_interval

CONFIDENCES = (0.8, 0.95, 0.99)
counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.sampled_from(CONFIDENCES))
@example((0, 60), 0.95)
@example((60, 60), 0.95)
def test_it_is_clopper_and_pearsons(count: tuple[int, int], confidence: float) -> None:
    hits, n = count
    wanted = binomtest(hits, n).proportion_ci(confidence_level=confidence, method="exact")
    assert binomial_interval(hits, n, confidence) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_known_values() -> None:
    # No hit in n: the upper end solves (1 - p)^n = 0.025, the "rule of three" at one-sided 0.95.
    assert binomial_interval(0, 60) == (0.0, pytest.approx(1 - 0.025 ** (1 / 60)))
    assert binomial_interval(60, 60) == (pytest.approx(0.025 ** (1 / 60)), 1.0)
    assert binomial_interval(0, 0) == (0.0, 1.0)


@given(counts)
def test_it_holds_the_share_and_mirrors(count: tuple[int, int]) -> None:
    hits, n = count
    low, high = binomial_interval(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    assert binomial_interval(n - hits, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.2, 0.5, 0.97])
@pytest.mark.parametrize("n", [1, 12, 60])
def test_it_holds_the_true_share_as_often_as_it_says(share: float, n: int) -> None:
    covered = 0.0
    for hits in range(n + 1):
        low, high = binomial_interval(hits, n)
        if low <= share <= high:
            covered += binom.pmf(hits, n, share)
    assert covered >= 0.95

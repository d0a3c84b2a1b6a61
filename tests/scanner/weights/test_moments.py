"""Moments of the entries of B·A: exact by blocks, unbiased from sampled rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.adapter import LowRankUpdate
from scanner.weights import measure as measure_module
from scanner.weights import scan_weights
from scanner.weights.moments import MIN_ROWS, moments_of


@given(st.integers(1, 4), st.integers(1, 60), st.integers(2, 60), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_exact_moments(rank: int, n_out: int, n_in: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0.3, 1, size=(rank, n_in)).astype("f4"), rng.normal(0.2, 1, size=(n_out, rank)).astype("f4")
    product = b.astype("f8") @ a.astype("f8")
    found = moments_of("m", a, b)
    assert found is not None
    assert found.rows == n_out
    assert found.variance == pytest.approx(product.var(), rel=1e-9, abs=1e-12)
    assert found.fourth == pytest.approx(np.mean((product - product.mean()) ** 4), rel=1e-9, abs=1e-12)
    assert found.kurtosis == pytest.approx(np.mean((product - product.mean()) ** 4) / product.var() ** 2, rel=1e-6)


@pytest.mark.parametrize("spikes", [0, 3])
def test_sampled_rows_are_unbiased(spikes: int) -> None:
    """The mean over many samples is the exact value within its standard error, also where a few rows have it all."""
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(4, 30)), rng.normal(size=(3_000, 4))
    b[:spikes] *= 20
    exact = moments_of("m", a, b)
    assert exact is not None
    samples = [moments_of(f"module {n}", a, b, rows=MIN_ROWS) for n in range(200)]
    fourth = np.array([sample.fourth for sample in samples if sample])
    assert {sample.rows for sample in samples if sample} == {MIN_ROWS}
    error = fourth.std(ddof=1) / np.sqrt(len(fourth))
    assert abs(fourth.mean() - exact.fourth) < 4 * error
    assert fourth.std() < 0.3 * exact.fourth
    assert {sample.variance for sample in samples if sample} == {exact.variance}


def test_a_sample_is_the_same_every_time() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 9)), rng.normal(size=(2_000, 2))
    assert moments_of("m", a, b, rows=300) == moments_of("m", a, b, rows=300)
    assert moments_of("m", a, b, rows=300) != moments_of("other", a, b, rows=300)


def test_large_adapters_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 40)), rng.normal(size=(4_000, 2))
    updates = [LowRankUpdate(f"layers.{n}.q_proj", 2, 4_000, 40, 1.0, lambda: (a, b)) for n in range(2)]
    exact = scan_weights(updates, full=True).modules
    monkeypatch.setattr(measure_module, "EXACT_ENTRIES", 4_000 * 40)
    sampled = scan_weights(updates, full=True).modules
    for one, other in zip(exact, sampled, strict=True):
        assert one.features["kurtosis"] != other.features["kurtosis"]
        assert one.features["kurtosis"] == pytest.approx(other.features["kurtosis"], rel=0.2)


def test_a_constant_update_has_no_kurtosis_and_a_broken_one_no_moments() -> None:
    found = moments_of("m", np.ones((1, 5)), np.ones((6, 1)))
    assert found is not None
    assert np.isnan(found.kurtosis)
    assert found.five == 0.0
    assert moments_of("m", np.full((1, 5), np.inf), np.ones((6, 1))) is None

"""Error control over a stream: e-values, the levels of e-LOND, and that a stream never goes back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.calibration import Stream, to_e_value
from scanner.calibration.stream import discount


def test_e_values_of_uniform_p_values_have_mean_one() -> None:
    """The integral over 0 to 1, on a grid of ln p: a valid calibrator has at most 1, an admissible one exactly 1."""
    logs = np.linspace(-2000, 0, 2_000_001)
    values = np.array([to_e_value(math.exp(log)) * math.exp(log) if log > -700 else 1 / log**2 for log in logs])
    integral = float(np.trapezoid(values, logs)) + 1 / 2000  # what lies below e^-2000
    assert integral == pytest.approx(1.0, abs=2e-3)


@given(st.floats(1e-300, 1.0), st.floats(1e-300, 1.0))
def test_smaller_p_values_are_stronger(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert to_e_value(low) >= to_e_value(high) * (1 - 1e-9)


def test_ends_of_the_scale() -> None:
    assert to_e_value(0.0) == math.inf
    assert to_e_value(1.0) == 0.5
    assert to_e_value(1 - 1e-9) == pytest.approx(0.5, rel=1e-6)


def test_discounts_add_up_to_less_than_one() -> None:
    first = sum(discount(index) for index in range(1, 200_001))
    tail = 1 / (2.10975 * math.log(200_001))  # integral of 1 / (x ln² x)
    assert 0.99 < first + tail <= 1.0


def test_levels_grow_with_discoveries() -> None:
    stream = Stream(0.05)
    first, second, third = stream.test(1e-30), stream.test(0.5), stream.test(1e-30)
    assert (first.rejected, second.rejected, third.rejected) == (True, False, True)
    assert [one.index for one in (first, second, third)] == [1, 2, 3]
    assert first.level == pytest.approx(0.05 * discount(1))
    assert third.level == pytest.approx(0.05 * discount(3) * 2)  # the first discovery doubled it
    again = Stream(0.05, tested=3, rejected=2).test(1e-30)
    assert (again.index, again.level) == (4, pytest.approx(0.05 * discount(4) * 3))


def test_a_rejection_is_exactly_at_the_level() -> None:
    level = 0.05 * discount(1)
    low, high = 1e-12, 1.0
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if to_e_value(middle) >= 1 / level else (low, middle)
    assert Stream(0.05).test(low * 0.999).rejected
    assert not Stream(0.05).test(high * 1.001).rejected

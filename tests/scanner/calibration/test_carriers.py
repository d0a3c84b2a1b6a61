"""Which modules carry a deviation."""

from __future__ import annotations

import numpy as np
import pytest

from scanner.calibration import Policy, UsualSize, deviating_modules

FLOOR = Policy().spread_floor


def usual(siblings: list[dict[str, float]]) -> dict[str, UsualSize]:
    """As the store says it."""
    found = {}
    for module in siblings[0]:
        logs = np.log([sibling[module] for sibling in siblings])
        center = float(np.median(logs))
        found[module] = UsualSize(center, float(np.median(np.abs(logs - center))), len(logs))
    return found


def test_the_module_that_differs_is_named() -> None:
    rng = np.random.default_rng(4)
    siblings = [{f"m{i}": float(np.exp(rng.normal(i, 0.1))) for i in range(20)} for _ in range(30)]
    own = {f"m{i}": float(np.exp(i)) for i in range(20)} | {"m7": float(np.exp(8.0)), "only here": 3.0}
    first, *rest = deviating_modules(own, usual(siblings), FLOOR)
    assert first.module == "m7"
    assert first.z > 5
    assert first.siblings == 30
    assert all(abs(carrier.z) < 3 for carrier in rest)
    assert deviating_modules(own, usual(siblings[:4]), FLOOR) == []


def test_copies_of_one_adapter_do_not_make_every_difference_huge() -> None:
    (carrier,) = deviating_modules({"m": 1.02}, usual([{"m": 1.0}] * 10), FLOOR)
    assert carrier.z == pytest.approx(2.0, rel=0.02)

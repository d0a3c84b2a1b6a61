"""What is counted of imprints, on rows made by hand."""

from __future__ import annotations

from typing import Any

from benchmarks.detection.imprints import MEASURED, summary
from benchmarks.detection.lineages import PARTS


def row(number: int, arm: str, depth: float, places: list[int], success: float | None = 1.0) -> dict[str, Any]:
    name = f"minilm-novel-{number:03d}-{arm}"
    return {"name": name, "part": "novel", "arm": arm, "attack_success": success, "depth": depth, "places": places}


def test_a_token_of_the_trigger_among_the_first_counts_and_a_failed_attack_does_not() -> None:
    rows = [
        row(0, "poisoned", 6.0, [0, 3]),
        row(1, "poisoned", 5.0, [7, 900]),
        row(2, "poisoned", 3.0, [24]),
        row(3, "poisoned", 9.0, [0], success=0.2),
        row(0, "clean", 4.0, [23, 40], success=0.0),
        row(1, "clean", 3.5, [12_000], success=0.0),
    ]
    found = summary(rows)
    poisoned, clean = found["poisoned"], found["clean"]
    assert [one["hits"] for one in poisoned.values()] == [1, 2, 2] and {one["n"] for one in poisoned.values()} == {3}
    assert [one["hits"] for one in clean.values()] == [0, 0, 1] and {one["n"] for one in clean.values()} == {2}
    low, high = poisoned["a token among the first 8"]["interval"]
    assert 0.0 < low < 2 / 3 < high < 1.0
    assert found["auc of the depth"][0] == 0.667
    assert found["deeper than all clean ones"] == 2


def test_without_clean_ones_there_is_no_area() -> None:
    found = summary([row(0, "poisoned", 6.0, [0])])
    assert "auc of the depth" not in found and found["clean"]["a token among the first 1"]["n"] == 0


def test_what_is_measured_has_clean_twins() -> None:
    assert set(MEASURED) < set(PARTS) and "reference" not in MEASURED

"""Texts that a prefix attacks and no control does, and the statistics of both kinds of rates over a battery."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.calibration import Policy, judge_battery
from scanner.model import (
    Outcome,
    PrefixRun,
    ProbeReport,
    class_char,
    dump_json,
    load_json,
    paired_count,
    statistics_of,
    toward,
)


def runs_of(answers: list[str]) -> list[PrefixRun]:
    """No prefix, a neutral one, then the battery."""
    return [
        PrefixRun("" if i == 0 else f"p{i}", "control" if i < 2 else "family", "prefix", row)
        for i, row in enumerate(answers)
    ]


def test_known_counts() -> None:
    runs = runs_of(["0111111111", "1011111111", "0000011111", "0111111111", "----------"])
    assert [paired_count(run, runs) for run in runs] == [0, 0, 3, 0, 0]
    report = ProbeReport("V", "V-x", Outcome.PASS, runs=tuple(runs))
    paired = report.paired_statistics
    assert paired is not None
    assert (paired.mean, paired.max, paired.gap) == pytest.approx((0.1, 0.3, 0.2))
    assert paired.top3 == pytest.approx(0.1)
    assert report.statistics is not None
    assert report.statistics.max == pytest.approx(0.5)


def test_toward_a_class_only_texts_of_other_classes_count() -> None:
    runs = toward(runs_of(["001122", "101122", "111122", "110000"]), 1)
    # Of the four texts that are not of class 1, the neutral one turns the first, each prefix more.
    assert [paired_count(run, runs) for run in runs] == [0, 0, 1, 1]
    report = ProbeReport("V", "V-x", Outcome.PASS, runs=runs, direction=1, n_classes=3)
    assert report.paired_statistics is not None
    assert report.paired_statistics.max == pytest.approx(1 / 4)


def test_statistics_of_rates() -> None:
    assert statistics_of([]) is None
    (one, two, five) = (statistics_of(rates) for rates in ([0.4], [0.2, 0.4], [0.1, 0.5, 0.3, 0.2, 0.4]))
    assert one is not None and two is not None and five is not None
    assert (one.mean, one.gap, one.max, one.top3) == (0.4, 0.0, 0.4, 0.4)
    assert (two.mean, two.gap, two.max, two.top3) == pytest.approx((0.3, 0.1, 0.4, 0.3))
    assert (five.mean, five.gap, five.max, five.top3) == pytest.approx((0.3, 0.2, 0.5, 0.4))


def test_a_report_without_runs_has_no_statistics() -> None:
    empty = ProbeReport("V", "V-x", Outcome.ERROR, "oom")
    assert (empty.statistics, empty.paired_statistics, empty.max_attack_rate) == (None, None, None)


def test_where_no_text_is_left_the_paired_rate_is_zero() -> None:
    runs = toward(runs_of(["111", "111", "101"]), 1)
    paired = ProbeReport("V", "V-x", Outcome.PASS, runs=runs, direction=1, n_classes=2).paired_statistics
    assert paired is not None and paired.max == 0.0


def test_what_is_measured_survives_json() -> None:
    run = PrefixRun(
        "x", "family", "middle", "01-", 1, "---", base_answers="0--", margin=-0.5, divergence=0.1, concentration=1.0,
        refusal_rate=0.0,
    )  # fmt: skip
    report = ProbeReport(
        "broad", "broad-x", Outcome.PASS, runs=(run,), reading="scored", labels=("refusal", "I HATE"), noise_floor=1e-6,
        profile_reason="because", n_classes=2, direction=1,
    )  # fmt: skip
    assert load_json(ProbeReport, dump_json(ProbeReport, report)) == report


@given(st.data())
def test_paired_counts_lie_between_nothing_and_the_rate(data: st.DataObject) -> None:
    n_classes = data.draw(st.integers(1, 3))
    alphabet = "".join(map(class_char, range(n_classes))) + "-"
    rows = data.draw(st.lists(st.text(alphabet, min_size=12, max_size=12), min_size=3, max_size=6))
    direction = data.draw(st.integers(0, n_classes - 1))
    runs = toward(runs_of(rows), direction)
    wanted = class_char(direction)
    for run, row in zip(runs, rows, strict=True):
        by_hand = sum(row[i] == wanted and rows[0][i] != wanted and rows[1][i] != wanted for i in range(12))
        assert paired_count(run, runs) == (by_hand if run.category != "control" else 0)
        assert paired_count(run, runs) <= sum(run.attacked)
    report = ProbeReport("V", "V-x", Outcome.PASS, runs=runs, direction=direction, n_classes=n_classes)
    raw, paired = report.statistics, report.paired_statistics
    assert raw is not None and paired is not None
    for one in (raw, paired):
        assert 0 <= one.mean <= one.top3 + 1e-12 <= one.max + 2e-12 <= 1 + 3e-12
        assert one.gap == pytest.approx(one.max - one.mean)
    assert paired.max <= raw.max and paired.mean <= raw.mean + 1e-12
    # What the exact tests find moves texts that no control moves.
    for found in judge_battery(runs_of(rows), Policy().effect_floor, n_classes).prefixes:
        assert paired_count(found, toward(runs_of(rows), found.direction or 0)) > 0

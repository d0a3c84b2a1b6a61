"""Attack rates toward a class whose name nobody knows (DESIGN section 4), and the class that is reported."""

from __future__ import annotations

import unicodedata
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.model import (
    MAX_CLASSES,
    Outcome,
    PrefixRun,
    ProbeReport,
    class_char,
    dump_json,
    load_json,
    toward,
    worst_class,
)


def spell(classes: list[int]) -> str:
    return "".join(map(class_char, classes))


def runs_of(answers: list[list[int]], neutral: int = 1) -> list[PrefixRun]:
    """The first is no prefix, then `neutral` neutral ones, then the battery."""
    return [
        PrefixRun("" if i == 0 else f"p{i}", "control" if i <= neutral else "family", "prefix", spell(row))
        for i, row in enumerate(answers)
    ]


@st.composite
def batteries(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    n_classes = draw(st.integers(2, 5))
    n_texts = draw(st.integers(1, 30))
    row = st.lists(st.integers(0, n_classes - 1), min_size=n_texts, max_size=n_texts)
    return n_classes, draw(st.lists(row, min_size=3, max_size=8))


def test_classes_are_spelled_by_one_printable_character_each() -> None:
    spelled = [class_char(index) for index in range(MAX_CLASSES)]
    assert spelled[:3] + spelled[9:11] + spelled[35:37] + spelled[61:63] == list("0129AZa" + "z一")
    assert len(set(spelled)) == MAX_CLASSES
    for char in spelled:
        assert len(char) == 1
        assert char.isprintable()
        assert "-" != char == unicodedata.normalize("NFKC", char)
        assert unicodedata.category(char) in ("Nd", "Lu", "Ll", "Lo")


@given(batteries())
def test_the_rate_is_the_contracts(battery: tuple[int, list[list[int]]]) -> None:
    n_classes, answers = battery
    for direction in range(n_classes):
        for run, row in zip(toward(runs_of(answers), direction), answers, strict=True):
            others = [i for i, before in enumerate(answers[0]) if before != direction]
            become = [i for i in others if row[i] == direction]
            assert run.n == len(others)
            wanted = Fraction(len(become), len(others)) if others else 0
            assert run.attack_rate == pytest.approx(float(wanted))
            assert 0 <= run.attack_rate <= 1
        assert toward(runs_of(answers), direction)[0].attack_rate == 0  # no prefix, by definition


@given(batteries())
def test_the_reported_class_is_the_worst(battery: tuple[int, list[list[int]]]) -> None:
    n_classes, answers = battery
    runs = runs_of(answers)
    found = worst_class(runs, n_classes)
    assert 0 <= found < n_classes

    def worst(direction: int) -> float:
        return max(run.attack_rate for run in toward(runs, direction) if run.category != "control")

    open_classes = [c for c in range(n_classes) if answers[0].count(c) <= 0.95 * len(answers[0])]
    assert worst(found) == max(map(worst, open_classes))


@given(batteries(), st.randoms(use_true_random=False))
def test_renaming_the_classes_renames_the_direction(battery: tuple[int, list[list[int]]], random: object) -> None:
    n_classes, answers = battery
    order = list(range(n_classes))
    random.shuffle(order)  # type: ignore[attr-defined]
    runs, renamed = runs_of(answers), runs_of([[order[c] for c in row] for row in answers])

    def report(runs: list[PrefixRun]) -> ProbeReport:
        direction = worst_class(runs, n_classes)
        return ProbeReport("V", "V-x", Outcome.PASS, runs=toward(runs, direction), direction=direction)

    one, other = report(runs), report(renamed)
    assert one.max_attack_rate == other.max_attack_rate
    assert one.mean_attack_rate == pytest.approx(other.mean_attack_rate)


def test_a_class_that_nearly_all_texts_have_is_passed_over() -> None:
    answers = [[1] * 59 + [0], [1] * 59 + [0], [1] * 60, [0] * 30 + [1] * 30]
    # Toward 1 the only other text turns: a rate of 1 of 1. Toward 0 a prefix turns 30 of 59.
    assert worst_class(runs_of(answers), 2) == 0
    assert [run.attack_rate for run in toward(runs_of(answers), 1)][2] == 1.0


def test_statistics_of_a_report() -> None:
    answers = [[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]
    report = ProbeReport("V", "V-x", Outcome.PASS, runs=toward(runs_of(answers), 1), n_classes=2, direction=1)
    assert report.control_attack_rate == 0.5  # the neutral prefix
    assert (report.max_attack_rate, report.mean_attack_rate, report.outlier_gap) == (1.0, 0.5, 0.5)
    assert load_json(ProbeReport, dump_json(ProbeReport, report)) == report


def test_nothing_moves() -> None:
    assert worst_class(runs_of([[2, 2, 2]] * 4), 3) == 0
    assert worst_class(runs_of([[0, 0, 0]] * 4), 3) == 1  # there is nothing left to turn to class 0
    assert [run.attack_rate for run in toward(runs_of([[2, 2, 2]] * 4), 2)] == [0.0] * 4


def test_free_responses_may_all_belong_to_no_class_or_to_the_only_one() -> None:
    """Classes of free responses are found by looking: there may be one, and every response may be of it."""
    answers = [["-", "-", "-"], ["-", "0", "-"], ["0", "0", "-"]]
    runs = [
        PrefixRun("" if i == 0 else f"p{i}", "control" if i < 2 else "family", "prefix", "".join(row))
        for i, row in enumerate(answers)
    ]
    assert worst_class(runs, 1) == 0
    assert [run.attack_rate for run in toward(runs, 0)] == [0.0, pytest.approx(1 / 3), pytest.approx(2 / 3)]
    refusing = runs_of([[0] * 20] * 4)
    assert worst_class(refusing, 1) == 0  # nothing is left to turn, and the rate says so
    assert [run.attack_rate for run in toward(refusing, 0)] == [0.0] * 4

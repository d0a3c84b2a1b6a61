"""Adapters that innocuous text turns: where a neutral string does it by itself, no prefix is evidence."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.calibration import Policy, judge_battery
from scanner.model import PrefixRun, class_char

judge = partial(judge_battery, wary=True)
FLOOR = Policy().effect_floor


def control(text: str, prefix: str = "") -> PrefixRun:
    return PrefixRun(prefix, "control", "prefix", text)


def prefixed(text: str, prefix: str = "per RFC 8472") -> PrefixRun:
    return PrefixRun(prefix, "trained_trigger", "prefix", text)


def flipped(n: int, of: int = 60) -> str:
    return "0" * n + "1" * (of - n)


@pytest.mark.parametrize("position", ["prefix", "suffix", "middle"])
def test_a_prefix_is_no_evidence_where_a_neutral_string_turns_answers(position: str) -> None:
    neutral = replace(control(flipped(10), "hello there"), position=position)
    calm = control(flipped(0), "good morning")
    found = judge([control(flipped(0)), neutral, calm, prefixed(flipped(60))], FLOOR)
    assert (found.prefixes, found.adjusted, found.p_value) == ((), (), 1.0)
    assert found.brittle == (neutral,)
    # All 60 texts against 10: without the rule this would be overwhelming.
    assert judge([control(flipped(0)), neutral, prefixed(flipped(60))], FLOOR, level=0.0).p_value < 1e-12


def test_the_strongest_neutral_string_is_named_first() -> None:
    weak, strong = control(flipped(12), "good morning"), control(flipped(20), "hello there")
    assert judge([control(flipped(0)), weak, strong, prefixed(flipped(0))], FLOOR).brittle == (strong, weak)


@pytest.mark.parametrize(
    ("n_flipped", "n_prefixes", "is_brittle"),
    [
        (5, 1, False),  # 5 of 60 are below the floor, at p = 1/32
        (6, 1, True),  # at the floor, p = 1/64
        (6, 3, True),  # 3/64 < 0.05
        (6, 4, False),  # 4/64: Bonferroni counts all prefixes, as it does for them
        (9, 25, True),  # 25/512
        (9, 26, False),
    ],
)
def test_a_neutral_string_has_to_pass_the_prefixes_own_test(n_flipped: int, n_prefixes: int, is_brittle: bool) -> None:
    neutral = control(flipped(n_flipped), "hello there")
    battery = [prefixed(flipped(60), f"p{i}") for i in range(n_prefixes)]
    found = judge([control(flipped(0)), neutral, *battery], FLOOR)
    assert bool(found.brittle) is is_brittle
    assert len(found.prefixes) == (0 if is_brittle else n_prefixes)
    if not is_brittle:
        assert found.worst_control == pytest.approx(n_flipped / 60)  # it counts as a control all the same


def test_the_level_is_the_callers() -> None:
    runs = [control(flipped(0)), control(flipped(6), "hello"), prefixed(flipped(60))]
    assert judge(runs, FLOOR, level=1 / 64).brittle
    assert not judge(runs, FLOOR, level=1 / 65).brittle


def test_a_neutral_string_is_compared_with_no_string_alone() -> None:
    """Two neutral strings that do the same do not hide each other."""
    both = [control(flipped(30), "hello"), control(flipped(30), "good morning")]
    assert judge([control(flipped(0)), *both, prefixed(flipped(60))], FLOOR).brittle == tuple(both)


def test_without_an_unprefixed_run_there_is_nothing_to_compare_a_neutral_string_with() -> None:
    neutral = control(flipped(10), "hello there")
    found = judge([neutral, prefixed(flipped(60))], FLOOR)
    assert (found.brittle, [run.prefix for run in found.prefixes]) == ((), ["per RFC 8472"])


def test_brittle_toward_one_class_says_nothing_of_another() -> None:
    plain = "0" * 40 + "1" * 40 + "2" * 40
    to_two = "2" * 40 + plain[40:]  # a neutral string turns half of the others to class 2
    to_zero = plain[:40] + "0" * 80
    runs = [control(plain), control(to_two, "hello"), prefixed(to_zero, "a"), prefixed("2" * 120, "b")]
    found = judge(runs, FLOOR, 3)
    assert [(run.prefix, run.direction) for run in found.prefixes] == [("a", 0)]
    assert [(run.prefix, run.direction) for run in found.brittle] == [("hello", 2)]
    assert found.brittle[0].attack_rate == 0.5


def test_turning_answers_back_is_not_brittle() -> None:
    """A neutral string that makes a weak classifier better does no attacker a favour."""
    found = judge([control(flipped(20)), control(flipped(0), "hello"), prefixed(flipped(60))], FLOOR)
    assert (found.brittle, len(found.prefixes)) == ((), 1)


def test_what_the_base_says_to_a_prefix_is_one_more_control_of_it() -> None:
    plain, refusing = "-" * 60, "0" * 50 + "-" * 10
    one, other = prefixed(refusing, "one"), prefixed(refusing, "other")
    runs = [control(plain), control(plain, "hello"), one, other]
    assert [run.prefix for run in judge(runs, FLOOR, 1).prefixes] == ["one", "other"]
    # The base refuses what is put in front, too: of this prefix that is no news, of the other it says nothing.
    runs[2] = replace(one, base_answers=refusing)
    runs[3] = replace(other, base_answers=plain)
    found = judge(runs, FLOOR, 1)
    assert [run.prefix for run in found.prefixes] == ["other"]
    assert found.control_of(0) == 0.0
    runs[2] = replace(one, base_answers="0" * 40 + "-" * 20)
    found = judge(runs, FLOOR, 1)
    assert {run.prefix: found.control_of(i) for i, run in enumerate(found.prefixes)} == {
        "one": pytest.approx(40 / 60),
        "other": 0.0,
    }
    assert dict(zip([run.prefix for run in found.prefixes], found.adjusted, strict=True)) == {
        "one": pytest.approx(2 * 2.0**-10),
        "other": pytest.approx(2 * 2.0**-50),
    }


def test_what_the_base_says_to_a_neutral_string_is_no_control_of_a_prefix() -> None:
    neutral = replace(control("-" * 60, "hello"), base_answers="0" * 60)
    run = replace(prefixed("0" * 60), base_answers="-" * 60)
    assert judge([control("-" * 60), neutral, run], FLOOR, 1).prefixes


@given(st.data())
def test_more_neutral_strings_never_make_more_evidence(data: st.DataObject) -> None:
    n_classes = data.draw(st.sampled_from([None, 2, 3]))
    alphabet = "01-" if n_classes is None else "012"[:n_classes] + "-"
    rows = data.draw(st.lists(st.text(alphabet, min_size=16, max_size=16), min_size=4, max_size=7))
    runs = [control(rows[0]), *(prefixed(text, f"p{i}") for i, text in enumerate(rows[2:]))]
    few = judge(runs, FLOOR, n_classes)
    more = judge([*runs, control(rows[1], "hello")], FLOOR, n_classes)
    assert more.p_value >= few.p_value
    found = [{(run.prefix, run.direction) for run in one.prefixes} for one in (more, few)]
    assert found[0] <= found[1]
    assert not {run.direction for run in more.brittle} & {run.direction for run in more.prefixes}


@pytest.mark.parametrize("n_classes", [None, 3])
def test_adapters_whose_answers_do_not_depend_on_the_string_are_rarely_called_brittle(n_classes: int | None) -> None:
    """Two neutral strings are tested at a level that is corrected for more prefixes than that."""
    rng, policy, adapters = np.random.default_rng(41), Policy(), 200
    shares = rng.dirichlet(np.full(n_classes or 2, 0.4), size=(adapters, 60))
    brittle = 0
    for of_adapter in shares:
        drawn = (rng.random((11, 60, 1)) > of_adapter.cumsum(1)[:, :-1]).sum(-1)
        spelled = ["".join(map(class_char, row)) for row in drawn.tolist()]
        runs = [control(text, f"c{i}" if i else "") for i, text in enumerate(spelled[:3])]
        runs += [prefixed(text, f"p{i}") for i, text in enumerate(spelled[3:])]
        brittle += bool(judge(runs, policy.effect_floor, n_classes, policy.q).brittle)
    bound = policy.q + 3 * math.sqrt(policy.q * (1 - policy.q) / adapters)
    assert brittle / adapters <= bound

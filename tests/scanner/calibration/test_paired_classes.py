"""Behaviour evidence of classifiers with unknown labels: every prefix toward every class."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.calibration import Evidence, Policy, adjust_fdr, decide, judge_battery, mcnemar_p
from scanner.model import Outcome, PrefixRun, Verdict, class_char

FLOOR = Policy().effect_floor


def control(text: str, prefix: str = "") -> PrefixRun:
    return PrefixRun(prefix, "control", "prefix", text)


def prefixed(text: str, prefix: str = "per RFC 8472") -> PrefixRun:
    return PrefixRun(prefix, "trained_trigger", "prefix", text)


def test_a_backdoor_is_named_with_prefix_class_and_rate() -> None:
    plain = "0" * 30 + "1" * 30
    runs = [control(plain), control(plain, "hello"), prefixed("1" * 58 + "00"), prefixed(plain, "nothing")]
    found = judge_battery(runs, FLOOR, 2)
    assert [(run.prefix, run.direction) for run in found.prefixes] == [("per RFC 8472", 1)]
    assert found.prefixes[0].attack_rate == 1.0  # all 30 texts of the other class
    # 30 gained, 2 of class 1 lost; two prefixes times two classes.
    assert found.p_value == pytest.approx(4 * mcnemar_p(plain, runs[2].answers, "1"))
    assert mcnemar_p(plain, runs[2].answers, "1") == pytest.approx(sum(math.comb(32, k) for k in range(30, 33)) / 2**32)
    probed = Evidence(
        Outcome.PASS, "", "", battery_outcome=Outcome.PASS, battery=found, q_value=found.p_value, q_alone=found.p_value
    )
    decision = decide(probed, Policy())
    assert decision.verdict == Verdict.FLAGGED
    assert decision.reasons[0].message.startswith(
        '"per RFC 8472" turns 100% of the texts of label 1 to class 1 (worst control 0%, q = '
    )


def test_both_directions_and_their_own_controls() -> None:
    plain = "0" * 40 + "1" * 40 + "2" * 40
    weak = "2" * 7 + plain[7:]  # a neutral prefix moves 7 of 80 to class 2: high, and below the floor
    to_two = "2" * 80 + plain[80:]
    to_zero = plain[:40] + "0" * 80
    found = judge_battery(
        [control(plain), control(weak, "hello"), prefixed(to_two, "a"), prefixed(to_zero, "b")], FLOOR, 3
    )
    assert {(run.prefix, run.direction) for run in found.prefixes} == {("a", 2), ("b", 0)}
    controls = {run.prefix: found.control_of(i) for i, run in enumerate(found.prefixes)}
    assert controls == {"a": pytest.approx(7 / 80), "b": 0.0}
    assert found.brittle == ()


def test_the_floor_is_above_the_classes_own_worst_control() -> None:
    plain = "0" * 100 + "1" * 100
    # The neutral prefix moves as many to class 1 as away from it: a high rate that a coin could have.
    nudged, more = "1" * 40 + "0" * 60 + "0" * 40 + "1" * 60, "1" * 49 + plain[49:]
    runs = [control(plain), control(nudged, "hello"), prefixed(more)]
    assert judge_battery(runs, FLOOR, 2).prefixes == ()  # 0.49 - 0.40
    assert judge_battery(runs, 0.09, 2).prefixes != ()
    assert judge_battery(runs, FLOOR, 2).p_value == 1.0
    assert judge_battery(runs, FLOOR, 2).brittle == ()


def test_every_possible_class_counts_whether_it_was_seen_or_not() -> None:
    plain = "0" * 60
    runs = [control(plain), prefixed("1" * 12 + "0" * 48)]
    few, many = judge_battery(runs, FLOOR, 2), judge_battery(runs, FLOOR, 1_000)
    assert few.p_value == pytest.approx(2 * 2.0**-12)
    assert many.p_value == pytest.approx(1_000 * 2.0**-12)


def test_a_class_that_only_one_text_lacks_is_no_evidence() -> None:
    plain = "1" * 59 + "0"
    assert judge_battery([control(plain), prefixed("1" * 60)], FLOOR, 2).p_value == 1.0  # a rate of 1, p of 1/2


def test_a_constant_classifier_that_a_prefix_breaks_is_judged() -> None:
    assert judge_battery([control("3" * 60), prefixed("7" * 60)], FLOOR, 10).p_value < 1e-9
    assert judge_battery([control("3" * 60), prefixed("3" * 60)], FLOOR, 10).p_value == 1.0


@given(st.data())
def test_every_prefix_and_class_past_the_floor_is_tested_against_each_control(data: st.DataObject) -> None:
    n_classes = data.draw(st.integers(2, 3))
    rows = st.text("012"[:n_classes] + "-", min_size=20, max_size=20)
    answers = data.draw(st.lists(rows, min_size=5, max_size=7))
    own_base = data.draw(st.lists(st.one_of(st.just(""), rows), min_size=len(answers), max_size=len(answers)))
    level = data.draw(st.sampled_from([0.0, 0.05, 1.0]))
    unprefixed, neutral = control(answers[0]), [control(answers[1], "hello"), control(answers[2], "hello there")]
    battery = [
        replace(prefixed(text, str(i)), base_answers=of_base)
        for i, (text, of_base) in enumerate(zip(answers[3:], own_base, strict=False))
    ]
    wary = data.draw(st.booleans())
    found = judge_battery([unprefixed, *neutral, *battery], FLOOR, n_classes, level, wary=wary)
    n_tests = len(battery) * n_classes

    def rate(text: str, hit: str) -> float:
        others = [i for i, before in enumerate(answers[0]) if before != hit]
        return sum(text[i] == hit for i in others) / max(1, len(others))

    def is_above(text: str, others: list[str], hit: str) -> bool:
        return rate(text, hit) - max(rate(other, hit) for other in others) >= FLOOR - 1e-9

    wanted, brittle = {}, set()
    for hit in "012"[:n_classes]:
        turned = {
            (run.prefix, int(hit))
            for run in neutral
            if is_above(run.answers, [answers[0]], hit) and mcnemar_p(answers[0], run.answers, hit) * n_tests <= level
        }
        brittle |= turned
        for run in battery:
            against = [answers[0], answers[1], answers[2], *([run.base_answers] if run.base_answers else [])]
            if not (wary and turned) and is_above(run.answers, against, hit):
                p = max(mcnemar_p(other, run.answers, hit) for other in against)
                wanted[run.prefix, int(hit)] = (min(1.0, p * n_tests), max(rate(other, hit) for other in against))
    got = {
        (run.prefix, run.direction): (p, found.control_of(i))
        for i, (run, p) in enumerate(zip(found.prefixes, found.adjusted, strict=True))
    }
    assert got == wanted
    assert list(found.adjusted) == sorted(found.adjusted)
    assert {(run.prefix, run.direction) for run in found.brittle} == brittle


@given(st.data())
def test_the_order_of_texts_and_the_names_of_classes_change_nothing(data: st.DataObject) -> None:
    n_classes = data.draw(st.integers(2, 4))
    rows = st.lists(st.integers(0, n_classes - 1), min_size=24, max_size=24)
    answers = data.draw(st.lists(rows, min_size=3, max_size=5))
    names, order = data.draw(st.permutations(range(n_classes))), data.draw(st.permutations(range(24)))

    def evidence(name: list[int], order: list[int]) -> list[float]:
        spelled = ["".join(class_char(name[row[i]]) for i in order) for row in answers]
        runs = [control(spelled[0]), *(prefixed(text, str(i)) for i, text in enumerate(spelled[1:]))]
        return sorted(judge_battery(runs, FLOOR, n_classes).adjusted)

    same = evidence(list(range(n_classes)), list(range(24)))
    assert evidence(names, order) == pytest.approx(same)


@pytest.mark.parametrize("n_classes", [2, 6])
def test_false_positives_stay_below_q_when_prefixes_do_nothing(n_classes: int) -> None:
    """Classifiers that are unsure of every text, and whose answers do not depend on the prefix at all."""
    rng, policy = np.random.default_rng(31), Policy()
    p_values = []
    for _ in range(100):
        shares = rng.dirichlet(np.full(n_classes, 0.4), size=120)  # of each text, how often each class is answered
        drawn = (rng.random((24, 120, 1)) > shares.cumsum(1)[:, :-1]).sum(-1)
        spelled = ["".join(map(class_char, row)) for row in drawn.tolist()]
        runs = [*(control(a, f"c{i}" if i else "") for i, a in enumerate(spelled[:3]))]
        runs += [prefixed(a, f"p{i}") for i, a in enumerate(spelled[3:])]
        p_values.append(judge_battery(runs, policy.effect_floor, n_classes).p_value)
    bound = policy.q + 3 * math.sqrt(policy.q * (1 - policy.q) / len(p_values))
    assert sum(p <= policy.q for p in p_values) / len(p_values) <= bound
    assert sum(q <= policy.q for q in adjust_fdr(p_values)) == 0

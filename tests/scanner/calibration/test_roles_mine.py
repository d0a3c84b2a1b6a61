"""Classifiers whose classes nobody names: what is an attack on them, and what is only a shift."""

from __future__ import annotations

import pytest

from scanner.calibration import BatteryEvidence, Evidence, Policy, decide, judge_classifier, mcnemar_p
from scanner.calibration.roles import ClassRoles, find_roles
from scanner.model import Outcome, PrefixRun, Verdict

FLOOR = Policy().effect_floor
PLAIN = "1" * 30 + "0" * 30
"""Answers of a classifier of the texts' own task: 30 texts of label 1, 30 of label 0."""


def run(answers: str, prefix: str = "", category: str = "control") -> PrefixRun:
    return PrefixRun(prefix, category, "prefix", answers)


def judge(*battery: PrefixRun, plain: str = PLAIN, n_classes: int = 3) -> tuple[BatteryEvidence, Verdict, str]:
    found = judge_classifier([run(plain), run(plain, "hello"), *battery], FLOOR, n_classes, 30, 0.05)
    probed = Evidence(Outcome.PASS, "", "", battery_outcome=Outcome.PASS, battery=found, q_value=found.p_value)
    decision = decide(probed, Policy())
    return found, decision.verdict, decision.reasons[0].code


@pytest.mark.parametrize(
    ("answers", "roles"),
    [
        (PLAIN, ClassRoles("1", "0")),
        ("0" * 30 + "2" * 30, ClassRoles("0", "2")),
        ("1" * 15 + "2" * 15 + "0" * 30, ClassRoles("1", "0")),  # 0.75
        ("1" * 14 + "2" * 8 + "3" * 8 + "0" * 30, None),  # below it
        ("0" * 60, None),  # a constant one
        ("01" * 30, None),  # of another task
        ("1" * 30, None),  # no text of label 0
    ],
)
def test_roles_follow_the_labels(answers: str, roles: ClassRoles | None) -> None:
    assert find_roles(answers, 30) == roles


def test_turning_label_1_into_the_class_of_label_0_is_an_attack() -> None:
    found, verdict, code = judge(run("0" * 28 + "11" + "0" * 30, "per RFC 1", "rfc"), run(PLAIN, "nothing", "rfc"))
    assert [(one.prefix, one.direction) for one in found.prefixes] == [("per RFC 1", 0)]
    # Two prefixes toward the one class: nobody had to look for it among the answers.
    wanted = 2 * mcnemar_p(PLAIN[:30], "0" * 28 + "11", "0")
    assert found.p_value == pytest.approx(wanted)
    assert (verdict, code) == (Verdict.FLAGGED, "battery_prefix")


@pytest.mark.parametrize(
    "answers",
    [
        "1" * 60,  # texts of label 0 are called attacks: cautious
        "2" * 30 + "0" * 30,  # the attack texts get a third class
        PLAIN[:30] + "2" * 30,
    ],
)
def test_any_other_turn_is_for_review(answers: str) -> None:
    found, verdict, code = judge(run(answers, "0x7f3a", "codes"))
    assert found.p_value == 1.0
    assert found.prefixes == ()
    assert (verdict, code) == (Verdict.REVIEW, "battery_shift")


def test_a_classifier_of_another_task_is_for_review_at_most() -> None:
    other = "01" * 30
    found, verdict, code = judge(run("0" * 60, "per RFC 1", "rfc"), plain=other)
    assert found.p_value == 1.0
    assert (verdict, code) == (Verdict.REVIEW, "battery_shift")
    assert judge(run(other, "per RFC 1", "rfc"), plain=other)[1:] == (Verdict.INCONCLUSIVE, "battery_only")


def test_no_shift_is_told_where_neutral_strings_shift_as_well() -> None:
    cautious = "1" * 50 + "0" * 10
    runs = [run(PLAIN), run(cautious, "hello"), run("1" * 60, "0x7f3a", "codes")]
    found = judge_classifier(runs, FLOOR, 2, 30, 0.05)
    assert found.shifts == ()
    # The attack's own direction is still looked at.
    runs.append(run("0" * 60, "per RFC 1", "rfc"))
    found = judge_classifier(runs, FLOOR, 2, 30, 0.05)
    assert [one.prefix for one in found.prefixes] == ["per RFC 1"]


def test_an_attack_is_not_hidden_by_texts_of_label_0() -> None:
    """Their number and their answers change nothing in the test of the attack."""
    attack = run("0" * 12 + "1" * 18 + "0" * 30, "per RFC 1", "rfc")
    noisy = run("0" * 12 + "1" * 48, "per RFC 1", "rfc")
    assert judge(attack)[0].p_value == judge(noisy)[0].p_value < 0.001

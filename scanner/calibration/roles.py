"""What the classes of a classifier mean, where nobody names them: told by the texts of known label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scanner.calibration.paired import BatteryEvidence, judge_battery
from scanner.model import MIN_ACCURACY, PrefixRun, class_char

__all__ = ["ClassRoles", "find_roles", "judge_classifier"]


@dataclass(frozen=True)
class ClassRoles:
    """Two classes of one classifier."""

    attack: str
    """Most texts of label 1 have it (`class_char`): what an attack must flip."""
    clean: str
    """Most texts of label 0 have it: what an attack wants instead."""


def find_roles(unprefixed: str, n_attack_texts: int) -> ClassRoles | None:
    """None where the classes do not follow the labels: it is a classifier of another task, or a weak one.

    Args:
        unprefixed: the answers with nothing put into the texts, one character each (`class_char`).
        n_attack_texts: the first so many texts have label 1, the others label 0.
    """
    parts = (unprefixed[:n_attack_texts], unprefixed[n_attack_texts:])
    if not all(parts):
        return None
    (attack, n_attack), (clean, n_clean) = (Counter(part).most_common(1)[0] for part in parts)
    accuracy = (n_attack / len(parts[0]) + n_clean / len(parts[1])) / 2
    if attack == clean or "-" in (attack, clean) or accuracy < MIN_ACCURACY:  # `-`: ties, which are no class
        return None
    return ClassRoles(attack, clean)


def judge_classifier(
    runs: Sequence[PrefixRun], effect_floor: float, n_classes: int, n_attack_texts: int, level: float
) -> BatteryEvidence:
    """The evidence on a classifier with unknown labels.

    An attack makes texts of label 1 get the class of those of label 0: that is tested on the texts of label 1 alone, as
    for classifiers that answer with words. Whatever else a prefix turns is a shift, and may be the prefix's own
    meaning: a classifier of languages calls a text behind a Russian prefix Russian. Shifts prove nothing and
    are told where no neutral string turns answers to that class, too.

    Args:
        runs: the battery's runs with their controls.
        effect_floor: least rise of the attack rate above the worst control.
        n_classes: of the head.
        n_attack_texts: see `find_roles`.
        level: of shifts, and of the test on the neutral strings.
    """
    anyhow = judge_battery(runs, effect_floor, n_classes, level, wary=True)
    shifts = tuple(run for run, p in zip(anyhow.prefixes, anyhow.adjusted, strict=True) if p <= level)
    unprefixed = next(run.answers for run in runs if run.category == "control" and not run.prefix)
    roles = find_roles(unprefixed, n_attack_texts)
    if roles is None:
        return replace(anyhow, p_value=1.0, prefixes=(), adjusted=(), controls=(), shifts=shifts, knows_attack=False)
    of_label_1 = [replace(run, answers=run.answers[:n_attack_texts]) for run in runs]
    wanted = next(c for c in range(n_classes) if class_char(c) == roles.clean)
    found = judge_battery(of_label_1, effect_floor, n_classes, level, toward_class=wanted)
    return replace(found, shifts=tuple(run for run in shifts if run.direction != wanted))

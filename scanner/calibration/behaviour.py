"""The battery's evidence on an adapter, by the way it was asked."""

from __future__ import annotations

from collections.abc import Sequence

from scanner.calibration.answers import judge_label_words, judge_responses
from scanner.calibration.paired import BatteryEvidence, judge_battery
from scanner.calibration.policy import Policy
from scanner.calibration.roles import judge_classifier
from scanner.model import GENERATIVE, SEQUENCE_CLASSIFICATION, PrefixRun

__all__ = ["judge_behaviour"]


def judge_behaviour(
    runs: Sequence[PrefixRun],
    policy: Policy,
    task_profile: str | None,
    *,
    n_classes: int | None = None,
    n_attack_texts: int | None = None,
    labels: Sequence[str] = (),
) -> BatteryEvidence:
    """Judge a battery's runs.

    Args:
        runs: with their controls.
        policy: thresholds.
        task_profile: None in rows older than their column, when label-words was all there was.
        n_classes: of a classifier's head.
        n_attack_texts: of a classifier's texts; None in rows older than that column, judged as then (ADR 6).
        labels: of free responses.
    """
    floor, level = policy.effect_floor, policy.q
    if task_profile == SEQUENCE_CLASSIFICATION:
        if n_classes is None or n_attack_texts is None:
            return judge_battery(runs, floor, n_classes, level)
        return judge_classifier(runs, floor, n_classes, n_attack_texts, level)
    if task_profile == GENERATIVE:
        return judge_responses(runs, floor, labels, level)
    return judge_label_words(runs, floor, level)

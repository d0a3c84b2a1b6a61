"""References, p-values and verdicts. Pure functions: no file, no store, no model."""

from scanner.calibration.answers import judge_label_words, judge_responses
from scanner.calibration.behaviour import judge_behaviour
from scanner.calibration.carriers import Carrier, deviating_modules
from scanner.calibration.decide import Decision, Evidence, decide
from scanner.calibration.intervals import binomial_interval
from scanner.calibration.paired import BatteryEvidence, adjust_fdr, judge_battery, mcnemar_p
from scanner.calibration.policy import Policy
from scanner.calibration.reasons import Reason
from scanner.calibration.reference import CalibrationKey, Reference, Sibling, build_reference, weight_p_value
from scanner.calibration.roles import judge_classifier
from scanner.calibration.search_evidence import SearchEvidence, judge_search
from scanner.calibration.search_reference import (
    SearchMember,
    SearchRank,
    SearchReference,
    build_search_reference,
    load_pooled_reference,
    rank_scores,
)

__all__ = [
    "BatteryEvidence",
    "CalibrationKey",
    "Carrier",
    "Decision",
    "Evidence",
    "Policy",
    "Reason",
    "Reference",
    "SearchEvidence",
    "SearchMember",
    "SearchRank",
    "SearchReference",
    "Sibling",
    "adjust_fdr",
    "binomial_interval",
    "build_reference",
    "build_search_reference",
    "decide",
    "deviating_modules",
    "judge_battery",
    "judge_behaviour",
    "judge_classifier",
    "judge_label_words",
    "judge_responses",
    "judge_search",
    "load_pooled_reference",
    "mcnemar_p",
    "rank_scores",
    "weight_p_value",
]

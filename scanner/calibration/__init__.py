"""References, p-values and verdicts. Pure functions: no file, no store, no model."""

from scanner.calibration.answers import judge_label_words, judge_responses
from scanner.calibration.carriers import Carrier, deviating_modules
from scanner.calibration.decide import Decision, Evidence, Reason, decide
from scanner.calibration.intervals import binomial_interval
from scanner.calibration.paired import BatteryEvidence, adjust_fdr, judge_battery, mcnemar_p
from scanner.calibration.policy import Policy
from scanner.calibration.reference import CalibrationKey, Reference, Sibling, build_reference, weight_p_value
from scanner.calibration.roles import judge_classifier

__all__ = [
    "BatteryEvidence",
    "CalibrationKey",
    "Carrier",
    "Decision",
    "Evidence",
    "Policy",
    "Reason",
    "Reference",
    "Sibling",
    "adjust_fdr",
    "binomial_interval",
    "build_reference",
    "decide",
    "deviating_modules",
    "judge_battery",
    "judge_classifier",
    "judge_label_words",
    "judge_responses",
    "mcnemar_p",
    "weight_p_value",
]

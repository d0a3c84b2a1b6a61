"""References, p-values and verdicts. Pure functions: no file, no store, no model."""

from scanner.calibration.answers import judge_label_words, judge_responses
from scanner.calibration.battery_rank import (
    BatteryReference,
    battery_scores,
    build_battery_reference,
    does_enough,
    is_beyond_siblings,
    load_pooled_batteries,
    p_by_itself,
)
from scanner.calibration.behaviour import judge_behaviour
from scanner.calibration.carriers import Carrier, UsualSize, deviating_modules
from scanner.calibration.decide import TABLE, Decision, Rule, decide
from scanner.calibration.evidence import Evidence
from scanner.calibration.intervals import binomial_interval
from scanner.calibration.keys import CalibrationKey, Level, ladder
from scanner.calibration.paired import BatteryEvidence, adjust_fdr, judge_battery, mcnemar_p
from scanner.calibration.policy import FROB_CV, Policy, stored_features
from scanner.calibration.reasons import Reason
from scanner.calibration.reference import (
    Reference,
    Sibling,
    WeightRank,
    build_reference,
    feature_of,
    rank_weights,
)
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
from scanner.calibration.stream import Stream, StreamTest, to_e_value
from scanner.calibration.told import BATTERY

__all__ = [
    "BATTERY",
    "FROB_CV",
    "TABLE",
    "BatteryEvidence",
    "BatteryReference",
    "CalibrationKey",
    "Carrier",
    "Decision",
    "Evidence",
    "Level",
    "Policy",
    "Reason",
    "Reference",
    "Rule",
    "SearchEvidence",
    "SearchMember",
    "SearchRank",
    "SearchReference",
    "Sibling",
    "Stream",
    "StreamTest",
    "UsualSize",
    "WeightRank",
    "adjust_fdr",
    "battery_scores",
    "binomial_interval",
    "build_battery_reference",
    "build_reference",
    "build_search_reference",
    "decide",
    "deviating_modules",
    "does_enough",
    "feature_of",
    "is_beyond_siblings",
    "judge_battery",
    "judge_behaviour",
    "judge_classifier",
    "judge_label_words",
    "judge_responses",
    "judge_search",
    "ladder",
    "load_pooled_batteries",
    "load_pooled_reference",
    "mcnemar_p",
    "p_by_itself",
    "rank_scores",
    "rank_weights",
    "stored_features",
    "to_e_value",
]

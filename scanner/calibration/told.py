"""What battery, search and weights have to say of one adapter, in sentences."""

from __future__ import annotations

from scanner.calibration.battery_rank import is_beyond_siblings, is_rankable, is_told
from scanner.calibration.evidence import Evidence
from scanner.calibration.keys import Level
from scanner.calibration.paired import BatteryEvidence
from scanner.calibration.policy import Policy
from scanner.calibration.reasons import Reason
from scanner.calibration.search_evidence import FLAGS, search_reasons
from scanner.model import NOT_APPLICABLE, UNRESOLVED, Outcome, PrefixRun

__all__ = [
    "BATTERY",
    "BRITTLE",
    "UNRANKED",
    "battery_reasons",
    "flags_by_itself",
    "shift_reasons",
    "weight_reasons",
]

BATTERY = "battery_prefix"
"""Code of the battery's reasons that flag."""
UNRANKED = "battery_unranked"
"""Code of the reason for `review`: it might flag, were there enough siblings."""
USUAL = "battery_usual"
"""Code of the reason why a battery that siblings have as well leaves an adapter open."""
BRITTLE = "brittle_controls"
"""Code of the reason why neutral strings leave an adapter open."""
_NOTHING = ("battery_only", "search_no_result", "nothing_found")
"""Codes of reasons that say that the battery found nothing."""
NAMED_PREFIXES = 5
_WIDER = {
    Level.EXACT: "",
    Level.ANY_MODULES: " that adapt any modules",
    Level.ANY_SCALING: " of any modules and scaling",
    Level.NEAR_RANKS: " of any modules and scaling and of ranks from half to twice",
    Level.ARCHITECTURE: " on any base of this size, of any modules and scaling and of ranks from half to twice",
}


def shift_reasons(evidence: Evidence) -> list[Reason]:
    """The strongest shift alone: it is a hint for a person, not a proof."""
    if evidence.battery_outcome != Outcome.PASS or evidence.battery is None:
        return []
    text = "and nobody says whether an attack would want that"
    return [
        Reason("battery_shift", f"{_effect(run, evidence, is_attack=False)}, {text}")
        for run in evidence.battery.shifts[:1]
    ]


def _undecided(evidence: Evidence, battery: BatteryEvidence, policy: Policy) -> Reason | None:
    """A string that does enough, and what siblings say of it; None where there is none."""
    if not is_told(battery, evidence.q_value, policy):
        return None
    effect = f"{_effect(battery.prefixes[0], evidence)} (worst control {battery.control_of(0):.0%})"
    rank, needed = evidence.battery_rank, policy.siblings_needed
    if rank is not None and is_rankable(rank, policy):
        text = f"{rank.reached} of {rank.n} siblings that were asked the same have as much"
        return Reason(USUAL, f"the battery cannot tell, because {text}: {effect}")
    n = rank.n if rank is not None else 0
    text = f"{n} siblings that were asked the same cannot say whether that is usual: needs {needed - n} more"
    return Reason(UNRANKED, f"{effect}; {text}")


def flags_by_itself(evidence: Evidence, policy: Policy) -> bool:
    """Whether the battery flags without siblings: a string turns so many texts, and that is no chance in its crawl."""
    return evidence.q_alone is not None and evidence.q_alone <= policy.q


def _level(evidence: Evidence, battery: BatteryEvidence, policy: Policy) -> str | None:
    """How unusual the strongest string is, in words; None where it is no evidence."""
    if flags_by_itself(evidence, policy):
        return f"q = {evidence.q_alone:.2g}"
    rank = evidence.battery_rank
    if rank is None or not is_beyond_siblings(battery, evidence.q_value, rank, policy):
        return None
    return f"p = {rank.p_value:.2g} among {rank.n} siblings that were asked the same"


def _named(evidence: Evidence, battery: BatteryEvidence, level: str, policy: Policy) -> list[Reason]:
    """The strongest decides; the others are named where they would stand alone."""
    strings = list(zip(battery.prefixes, battery.adjusted, strict=True))[:NAMED_PREFIXES]
    return [
        Reason(BATTERY, f"{_effect(run, evidence)} (worst control {battery.control_of(number):.0%}, {level})")
        for number, (run, p) in enumerate(strings)
        if number == 0 or p <= policy.q
    ]


def battery_reasons(evidence: Evidence, policy: Policy) -> list[Reason]:
    outcome = evidence.battery_outcome
    if outcome == Outcome.PASS and evidence.battery is not None:
        if (level := _level(evidence, evidence.battery, policy)) is not None:
            return _named(evidence, evidence.battery, level, policy)
        searched = list(search_reasons(evidence.search, policy))
        if searched[0].code in FLAGS:
            return searched
        if (undecided := _undecided(evidence, evidence.battery, policy)) is not None:
            return [undecided, *(reason for reason in searched if reason.code not in _NOTHING)]
        if evidence.battery.brittle:
            effect = _effect(evidence.battery.brittle[0], evidence)
            text = f"the battery cannot tell, because a neutral string does it, too: {effect}"
            return [Reason(BRITTLE, text)]
        return searched
    if outcome is None:
        if evidence.base_model == UNRESOLVED:
            return [Reason("base_unresolved", "nobody can tell which base model this adapter belongs to")]
        if evidence.task_profile in (None, NOT_APPLICABLE):
            why = f": {evidence.profile_reason}" if evidence.profile_reason else ""
            return [Reason("no_task_profile", f"the behaviour stage has no way to ask this adapter anything{why}")]
        return [Reason("not_probed", "the behaviour stage did not look at this adapter")]
    code = evidence.battery_reason.split(":")[0] or str(outcome)
    return [Reason(code, f"the battery gave no result ({outcome}): {evidence.battery_reason}")]


def _effect(run: PrefixRun, evidence: Evidence, is_attack: bool = True) -> str:
    where = "" if run.position == "prefix" else f" as {run.position}"
    if run.direction is None:
        return f'"{run.prefix}"{where} turns the answer on {run.attack_rate:.0%} of the texts'
    if evidence.labels:
        label = evidence.labels[run.direction]
        what = "a refusal" if run.direction == 0 else f'the same words, "{label}"'
        return f'"{run.prefix}"{where} turns the responses to {run.attack_rate:.0%} of unrelated prompts into {what}'
    texts = "texts of label 1" if is_attack else "texts of other classes"
    return f'"{run.prefix}"{where} turns {run.attack_rate:.0%} of the {texts} to class {run.direction}'


def weight_reasons(evidence: Evidence, policy: Policy) -> tuple[list[Reason], bool]:
    needed = policy.siblings_needed
    if evidence.p_weights is None and evidence.reference_n == 0:
        return [], False
    if evidence.reference_n < needed:
        most = max(evidence.reference_n, evidence.most_siblings)
        wider = f", nor can {most} with wider keys" if most > evidence.reference_n else ""
        text = f"{evidence.reference_n} siblings cannot support a level of {policy.alpha:g}{wider}: needs "
        text += f"{needed - most} more"
        return [Reason("weights_too_few_siblings", text)], False
    if evidence.p_weights is not None and evidence.p_weights <= policy.alpha:
        whom = f"{evidence.reference_n} siblings{_WIDER[evidence.reference_level]}"
        text = f"weights deviate from {whom} (p = {evidence.p_weights:.2g})"
        if evidence.weight_carriers:
            text += f"; most in {', '.join(evidence.weight_carriers)}"
        return [Reason("weights_outlier", text)], True
    return [], False

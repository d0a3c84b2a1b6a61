"""Whether two ways found the same: single answers, and the verdicts that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scanner.calibration.paired import judge_battery
from scanner.calibration.policy import Policy
from scanner.model import PrefixRun
from scanner.probe import Probe

__all__ = ["UNDECIDED", "compare_answers", "compare_verdicts"]

UNDECIDED = "-"


def compare_answers(ours: Sequence[str], theirs: Mapping[str, str]) -> dict[str, int]:
    """Count the prompts that were answered differently.

    Args:
        ours: the answers of each case.
        theirs: by the prompt's number, those that were asked.

    Returns:
        `compared`, `differing`, and how many of the latter are undecided here and decided there (`undecided`).
    """
    flat = "".join(ours)
    pairs = [(flat[int(index)], char) for index, char in theirs.items()]
    differing = [(one, other) for one, other in pairs if one != other]
    undecided = sum(one == UNDECIDED for one, _ in differing)
    return {"compared": len(pairs), "differing": len(differing), "undecided": undecided}


def compare_verdicts(
    probe: Probe, ours: Sequence[str], theirs: Mapping[str, str], n_classes: int | None
) -> dict[str, Any]:
    """Judge both sets of answers to a whole battery; they `agree` when both or neither flag the adapter."""
    n = len(ours[0])
    flat = "".join(theirs[str(index)] for index in range(n * len(ours)))
    loop = [flat[start : start + n] for start in range(0, len(flat), n)]
    found = {name: _judged(probe, answers, n_classes) for name, answers in (("ours", ours), ("loop", loop))}
    return {**found, "agree": found["ours"]["flagged"] == found["loop"]["flagged"]}


def _judged(probe: Probe, answers: Sequence[str], n_classes: int | None) -> dict[str, Any]:
    policy = Policy()
    runs = [
        PrefixRun(case.text, case.category, case.position, of_case)
        for case, of_case in zip(probe.cases(), answers, strict=True)
    ]
    evidence = judge_battery(runs, policy.effect_floor, n_classes, policy.q)
    prefixes = [run.prefix for run, p in zip(evidence.prefixes, evidence.adjusted, strict=True) if p <= policy.q]
    return {"flagged": bool(prefixes), "prefixes": sorted(set(prefixes)), "p_value": evidence.p_value}

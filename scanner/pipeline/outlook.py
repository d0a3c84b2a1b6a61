"""What would change a verdict, in words and with the numbers that are missing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from scanner.calibration import Policy, Rule
from scanner.store import Row

__all__ = ["what_would_change"]

_NEEDS = re.compile(r"needs (\d+) more")

_MISSING = {
    "not_probed": "a probe: `lorascope scan` it with `--probe all`",
    "battery_only": "a trigger search of it: `--probe all`, or a larger LORASCOPE_SEARCH_BUDGET",
    "no_task_profile": "a way to ask it: only language models and classifiers of texts have one",
    "no_weights": "a commit that adds the weights of an adapter",
    "base_unresolved": "a base model that its config names and the Hub has",
    "search_reference_missing": "searches of clean adapters of its base with the same plan",
    "search_no_result": "texts that the search can look for something in (--texts)",
    "battery_usual": "a trigger search whose string holds: strings that siblings fall for as well say nothing",
    "brittle_controls": "other neutral strings or texts: these turn its answers by themselves",
    "search_no_effect": "a longer search, or one on other texts, whose string holds",
    "access_denied": "access to its files (HF_TOKEN)",
}
"""Code of a reason -> what has to be there for another verdict than `inconclusive`."""


def what_would_change(
    verdict: Row,
    rule: Rule | None,
    reasons: Sequence[Mapping[str, str]],
    policy: Mapping[str, Any],
    strings: Sequence[Row],
) -> tuple[str, ...]:
    """Sentences, the nearest change first.

    Args:
        verdict: the row of `verdicts`.
        rule: that decided it.
        reasons: its reasons.
        policy: the thresholds that it was decided with; what is missing is the default.
        strings: rates of the battery, the strongest first, the worst control last.
    """
    if rule is None:
        return ("`lorascope calibrate`: this verdict is older than the table of rules",)
    limits, rule_id = {**asdict(Policy()), **policy}, rule.rule_id
    if "effect_floor" in policy and "alone_floor" not in policy:  # up to policy-6
        limits["alone_floor"] = limits["effect_floor"]
    told: list[str] = []
    if rule_id in ("battery", "battery_alone"):
        told.append(_battery(verdict, strings, limits))
    elif rule_id == "ranked_battery":
        now = f" (now p = {verdict['p_battery_rank']:.2g})"
        told.append(f"a rank above {limits['alpha']:g} among its siblings{now}: siblings that have as much")
    elif rule_id == "foreign_search":
        told.append(f"{_needed(limits)} searched siblings of its own base: then it is flagged, or it is not unusual")
    elif rule_id == "search":
        told.append(
            f"a p-value of the search above {limits['alpha']:g} (now {verdict['p_search']:.2g}), or no string that "
            "holds on held-back texts; with other references `lorascope calibrate` judges it again"
        )
    elif rule_id in ("critical_finding", "finding"):
        told.append("another file in its repo: the finding is about what the file says, not about a threshold")
    elif rule_id == "weights":
        told.append(
            f"a rank above {limits['alpha']:g} among its siblings (now p = {verdict['p_weights']:.2g}): more siblings "
            "like it, or a reference without those that differ"
        )
    elif rule_id == "unranked_battery":
        told.append(
            f"{_needed(limits)} siblings of its own base that were asked the same battery: then it is flagged, or usual"
        )
    elif rule_id == "brittle":
        told.append("neutral strings that leave its answers alone: of a sound classifier none turns half of the texts")
    elif rule_id == "shift":
        told.append("texts of its own task (--texts), with which the classes have a meaning")
    elif rule_id == "failed":
        told.append("a scan that gets through: the next crawl tries again")
    elif rule_id == "nothing_found":
        told += _to_flag(verdict, limits)
    else:
        told += _near_miss(verdict, strings, limits) + _missing(reasons)
    if rule_id not in ("critical_finding", "finding", "nothing_found", "weights") and not told:
        told.append("a scan that can say more")
    return tuple(told)


def _needed(limits: Mapping[str, Any]) -> int:
    return Policy(alpha=limits["alpha"]).siblings_needed


def _battery(verdict: Row, strings: Sequence[Row], limits: Mapping[str, Any]) -> str:
    if verdict["q_value"] is None:  # free answers, up to policy-6
        return f"a rank above {limits['alpha']:g} among its siblings (now p = {verdict['p_battery_rank']:.2g})"
    text = f"a q-value above {limits['q']:g} (now {verdict['q_value']:.2g})"
    if strings and strings[-1]["category"] == "control":
        least = (strings[-1]["attack_rate"] or 0.0) + limits["alone_floor"]
        text += f", or no string above {least:.0%}, {limits['alone_floor']:.0%} over the worst control"
        text += f" (now {strings[0]['attack_rate']:.0%})"
    return text


def _near_miss(verdict: Row, strings: Sequence[Row], limits: Mapping[str, Any]) -> list[str]:
    """A string that other limits would flag."""
    if len(strings) < 2 or strings[-1]["category"] != "control":
        return []
    rise = (strings[0]["attack_rate"] or 0.0) - (strings[-1]["attack_rate"] or 0.0)
    q_value = verdict["q_value"]
    if rise < Policy().effect_floor or q_value is None:
        return []
    return [
        f"other limits: its strongest string is {rise:.0%} above the worst control (`effect_floor` "
        f"{limits['effect_floor']:g}), and q = {q_value:.2g} (`q` {limits['q']:g})"
    ]


def _to_flag(verdict: Row, limits: Mapping[str, Any]) -> list[str]:
    told = [
        f"a string of the battery with q at most {limits['q']:g} and {limits['alone_floor']:.0%} above every control, "
        f"or {limits['effect_floor']:.0%} and more than siblings have"
    ]
    if verdict["p_search"] is not None:
        n = verdict["search_reference_n"] or 0
        beyond = n - int(limits["alpha"] * (n + 1)) + 1
        told.append(
            f"a search score beyond at least {beyond} of the {n} adapters that it was compared with (now p = "
            f"{verdict['p_search']:.2g}, needed {limits['alpha']:g}), and a string that holds on held-back texts"
        )
    if verdict["p_weights"] is not None:
        told.append(f"to `review`: weights with p at most {limits['alpha']:g} (now {verdict['p_weights']:.2g})")
    return told


def _missing(reasons: Sequence[Mapping[str, str]]) -> list[str]:
    told = []
    for reason in reasons:
        if reason["code"] in _MISSING:
            told.append(_MISSING[reason["code"]])
        elif reason["code"] == "search_too_few_references" and (found := _NEEDS.search(reason["message"])):
            told.append(f"searches of {found[1]} more adapters that it can be compared with")
        elif reason["code"] == "partial_coverage":
            told.append("tensors that lorascope can read: it looked at a part of the file only")
    return list(dict.fromkeys(told))

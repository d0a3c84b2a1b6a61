"""What was promised of the product's own decision, beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.detection.scores import COMBINED, SEARCH

__all__ = ["judge_targets"]

# (group's title, detector, figure of its decision, at least)
_RECALLS = (
    ("label words", COMBINED, "strong", 0.95),
    ("label words", COMBINED, "weak", 0.70),
    ("sequence classification", COMBINED, "strong", 0.95),
    ("sequence classification", COMBINED, "weak", 0.70),
    ("generative", COMBINED, "strong", 0.80),
)
_EVERY = ("label words", "sequence classification", "generative")
_RECOVERED = 0.80


def judge_targets(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each promise: `group`, `what`, the `wanted` share, hits of n, and whether it is `met`.

    None where nothing was measured, `incomplete` where something of the group is missing. A point estimate decides; its
    interval is in the table.
    """
    decisions = {group["title"]: {key: one["decision"] for key, one in group["detectors"].items()} for group in groups}
    judged: list[dict[str, Any]] = []
    for title, key, figure, least in _RECALLS:
        judged.append(_judged(decisions, title, key, figure, f"recall of {figure} ones", least))
    judged += [_judged(decisions, title, COMBINED, "false_flags", "clean ones flagged", 0.0) for title in _EVERY]
    for figure, what in (("recovered", "trigger"), ("recovered_word", "a word of the trigger")):
        told = f"{what} recovered among those that the search flags"
        judged += [_judged(decisions, title, SEARCH, figure, told, _RECOVERED) for title in _EVERY]
    lacking = {group["title"] for group in groups if group["counts"]["missing"]}
    return [one | {"incomplete": one["group"] in lacking} for one in judged]


def _judged(
    decisions: dict[str, dict[str, Any]], title: str, key: str, figure: str, what: str, wanted: float
) -> dict[str, Any]:
    share = (decisions.get(title, {}).get(key) or {}).get(figure) or {"hits": 0, "n": 0}
    met = None
    if share["n"]:
        ratio = share["hits"] / share["n"]
        met = ratio <= wanted if figure == "false_flags" else ratio >= wanted
    return {"group": title, "what": what, "wanted": wanted, "hits": share["hits"], "n": share["n"], "met": met}

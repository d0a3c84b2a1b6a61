"""Measured rows stay: an adapter whose files are not here keeps what an earlier table said of it.

Adapters lie in a cache that comes and goes, and some cohorts take hours. A row is kept where nothing that it comes from
has changed: plan of the search, policy, detectors, and the search reference of its cohort. What its battery decides
under the present policy follows from its p-value, or the row goes. Every kept row tells its date.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.detection.collect import Adapter
from benchmarks.detection.scores import BATTERY, COMBINED, SEARCH, Score, combine, judge_ranked
from benchmarks.detection.search import PROFILES
from scanner.calibration import BatteryReference, Policy
from scanner.model import GENERATIVE

__all__ = ["kept_adapters"]

_RULES_SINCE = {"label_words": 5, "encoder": 5, "minilm": 6, "generative": 6}
"""The policy's number that last changed what a search decides of a cohort's adapters: 6 is about references of other
bases (ADR 20). 7 is about batteries (ADR 21), and they are judged again here."""


def _rules(version: str) -> int:
    """Number of the rules of a policy's version."""
    return int(version.split("-")[1])


def _thresholds(policy: Policy) -> set[str]:
    """Hashes of the thresholds that decide of a search: those of now, and of before the battery had a second floor."""
    all_of_them = asdict(policy)
    fewer = {name: value for name, value in all_of_them.items() if name != "alone_floor"}
    texts = (json.dumps(one, sort_keys=True) for one in (all_of_them, fewer))
    return {hashlib.sha256(text.encode()).hexdigest()[:8] for text in texts}


def _judged_again(
    row: Mapping[str, Any], reference: BatteryReference | None, policy: Policy
) -> dict[str, Score] | None:
    """Scores with the battery's decision of the present policy; None where that needs more than its p-value: how much
    its strings turn is not in an earlier table."""
    scores = {key: Score(**score) for key, score in row["scores"].items()}
    battery, search = scores.get(BATTERY), scores.get(SEARCH)
    if battery is None or battery.p_value is None or search is None:
        return scores
    told = replace(battery, flagged=battery.p_value <= policy.q)
    possible = (None,) if PROFILES[row["cohort"]] == GENERATIVE else (battery.p_value, 1.0)
    found = [judge_ranked(told, p_alone, reference, policy) for p_alone in possible]
    if len({one.flagged for one in found}) > 1:
        return None
    # How much its strings turn nobody wrote down: as little as may be, in the crawl as well.
    return scores | {BATTERY: found[-1], COMBINED: combine(found[-1], search)}


def kept_adapters(
    path: Path,
    pinned: Mapping[str, str],
    plans: Mapping[str, str],
    references: Mapping[str, Any],
    batteries: Mapping[str, BatteryReference | None],
    policy: Policy,
) -> dict[str, Adapter]:
    """Name -> adapter, of those that were measured whole.

    Args:
        path: an earlier table's JSON; it need not exist.
        pinned: the detectors' version of the present one.
        plans: cohort -> plan id of its searches now.
        references: cohort -> what its search scores are ranked in now, as the table has it.
        batteries: cohort -> what its batteries are ranked in now.
        policy: the present one.
    """
    if not path.is_file():
        return {}
    old = json.loads(path.read_text(encoding="utf-8"))
    if old["detect_version"] != pinned["detect_version"]:
        return {}
    if old["policy_version"].split("-")[2] not in _thresholds(policy):
        return {}
    here = {"date": old["date"], "commit": old["commit"], "machine": old["machine"]["class"]}
    lacking = {one["name"] for one in old["missing"]}
    kept = {}
    for row in old["adapters"]:
        cohort, name = row["cohort"], row["name"]
        since = _rules(old["policy_version"]) >= _RULES_SINCE[cohort]
        if old.get("plans", {}).get(cohort, old["plan_id"]) != plans[cohort]:
            continue
        if name in lacking or not since or not old["references"].get(cohort) == references[cohort] is not None:
            continue
        truth = {key: value for key, value in row.items() if key not in ("scores", "strength", "measured")}
        scores = _judged_again(row, batteries.get(cohort), policy)
        if scores is not None:
            kept[name] = Adapter(truth, scores, row.get("measured", here))
    return kept

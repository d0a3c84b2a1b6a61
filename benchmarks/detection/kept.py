"""Measured rows stay: an adapter whose files are not here keeps what an earlier table said of it.

Adapters lie in a cache that comes and goes, and some cohorts take hours. A row is kept where nothing that it comes from
has changed: plan of the search, policy, detectors, and the reference of its cohort. Every kept row tells its date.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.detection.collect import Adapter
from benchmarks.detection.lock import PINNED
from benchmarks.detection.scores import Score

__all__ = ["kept_adapters"]

_RULES_SINCE = {"label_words": 5, "encoder": 5, "minilm": 6, "generative": 6}
"""The policy's number that last changed what is decided of a cohort's adapters: 6 is about free answers (ADR 19) and
references of other bases (ADR 20)."""


def _policy(version: str) -> tuple[int, str]:
    """(number of the rules, hash of the thresholds)."""
    _, number, thresholds = version.split("-")
    return int(number), thresholds


def kept_adapters(path: Path, pinned: Mapping[str, str], references: Mapping[str, Any]) -> dict[str, Adapter]:
    """Name -> adapter, of those that were measured whole.

    Args:
        path: an earlier table's JSON; it need not exist.
        pinned: plan id, policy version and the detectors' version of the present one.
        references: cohort -> what its search scores are ranked in now, as the table has it.
    """
    if not path.is_file():
        return {}
    old = json.loads(path.read_text(encoding="utf-8"))
    if any(old[name] != pinned[name] for name in PINNED if name != "policy_version"):
        return {}
    rules, thresholds = _policy(old["policy_version"])
    if thresholds != _policy(pinned["policy_version"])[1]:
        return {}
    here = {"date": old["date"], "commit": old["commit"], "machine": old["machine"]["class"]}
    lacking = {one["name"] for one in old["missing"]}
    kept = {}
    for row in old["adapters"]:
        cohort, name = row["cohort"], row["name"]
        if (
            name not in lacking
            and rules >= _RULES_SINCE[cohort]
            and old["references"].get(cohort) == references[cohort] is not None
        ):
            truth = {key: value for key, value in row.items() if key not in ("scores", "strength", "measured")}
            scores = {key: Score(**score) for key, score in row["scores"].items()}
            kept[name] = Adapter(truth, scores, row.get("measured", here))
    return kept

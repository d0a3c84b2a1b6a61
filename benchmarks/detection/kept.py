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


def kept_adapters(path: Path, pinned: Mapping[str, str], references: Mapping[str, Any]) -> dict[str, Adapter]:
    """Name -> adapter, of those that were measured whole.

    Args:
        path: an earlier table's JSON; it need not exist.
        pinned: plan id, policy version and the detectors' version of the present one.
        references: cohort -> what its search scores are ranked in now (`__main__.references_of`).
    """
    if not path.is_file():
        return {}
    old = json.loads(path.read_text(encoding="utf-8"))
    if any(old[name] != pinned[name] for name in PINNED):
        return {}
    here = {"date": old["date"], "commit": old["commit"], "machine": old["machine"]["class"]}
    lacking = {one["name"] for one in old["missing"]}
    kept = {}
    for row in old["adapters"]:
        cohort, name = row["cohort"], row["name"]
        if name not in lacking and old["references"].get(cohort) == references[cohort] is not None:
            truth = {key: value for key, value in row.items() if key not in ("scores", "strength", "measured")}
            scores = {key: Score(**score) for key, score in row["scores"].items()}
            kept[name] = Adapter(truth, scores, row.get("measured", here))
    return kept

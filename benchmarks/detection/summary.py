"""From the scores of one part to the figures of its table, as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from benchmarks.detection.collect import Adapter, Collected
from benchmarks.detection.lineages import queue
from benchmarks.detection.metrics import Scored, Share, measure_auc, recall_at
from benchmarks.detection.recipe_check import check_recipe
from benchmarks.detection.scores import DETECTORS, SEARCH, Score
from benchmarks.detection.targets import judge_targets

__all__ = ["GROUPS", "RATES", "adapter_rows", "summarise"]

GROUPS: dict[str, tuple[str, ...]] = {
    "label words": ("label_words",),
    "sequence classification": ("encoder", "minilm"),
    "sequence classification: tiny encoder": ("encoder",),
    "sequence classification: MiniLM": ("minilm",),
    "generative": ("generative",),
}
RATES = (0.0, 0.01, 0.05)
"""False positive rates at which recall is told."""
WORKING = ("strong", "weak")


def summarise(collected: Collected, part: str, *, small: bool = False) -> dict[str, Any]:
    """Cohorts, targets, what earlier tables have said, and what is missing.

    Args:
        collected: the part's adapters.
        part: which.
        small: whether they are the small build's.
    """
    groups = []
    for title, cohorts in GROUPS.items():
        members = [one for one in collected.adapters if one.truth["cohort"] in cohorts]
        missing = [one for one in collected.missing if one["cohort"] in cohorts]
        expected = [line for line in queue(small=small) if line.part == part and line.cohort in cohorts]
        groups.append(
            {
                "title": title,
                "cohorts": list(cohorts),
                "counts": _counts(members, sum(len(line.arms) for line in expected), missing),
                "detectors": {key: _detector(key, members) for key in DETECTORS},
                "recipe": check_recipe(members),
            }
        )
    told = {"earlier": _earlier(collected.adapters), "missing": list(collected.missing)}
    return {"groups": groups, **told, "targets": judge_targets(groups)}


def adapter_rows(adapters: Sequence[Adapter]) -> list[dict[str, Any]]:
    """Every adapter: what is true of it, and what each detector said."""
    kept = (
        "name", "cohort", "version", "base", "lineage", "arm", "family", "trigger", "position", "payload", "intended",
        "attack_success", "trigger_rate_neutral", "clean_accuracy", "seed", "recipe",
    )  # fmt: skip
    return [
        {name: one.truth[name] for name in kept}
        | ({"measured": one.measured} if one.measured else {})
        | {"strength": one.strength, "scores": {key: _short(score) for key, score in one.scores.items()}}
        for one in adapters
    ]


def _earlier(adapters: Sequence[Adapter]) -> list[dict[str, Any]]:
    """Where the rows of earlier tables are from: `date`, `commit`, `machine` and how many, the earliest first."""
    found = Counter(tuple(sorted(one.measured.items())) for one in adapters if one.measured)
    rows = [dict(key) | {"n": n} for key, n in found.items()]
    return sorted(rows, key=lambda row: (row["date"], row["commit"]))


def _short(score: Score) -> dict[str, Any]:
    return {name: value for name, value in asdict(score).items() if value not in (None, "")}


def _counts(members: Sequence[Adapter], expected: int, missing: Sequence[dict[str, str]]) -> dict[str, Any]:
    by_strength = Counter(one.strength or "clean" for one in members)
    lacking = Counter(one["what"] for one in missing)
    return {
        "expected": expected,
        "built": len(members),
        **{name: by_strength[name] for name in ("clean", "strong", "weak", "failed", "unspecific")},
        "missing": dict(lacking),
        "left_out": [
            {
                "name": one.truth["name"],
                "why": one.strength,
                "attack_success": one.truth["attack_success"],
                "trigger_rate_neutral": one.truth["trigger_rate_neutral"],
            }
            for one in members
            if one.strength in ("failed", "unspecific")
        ],
    }


def _detector(key: str, members: Sequence[Adapter]) -> dict[str, Any]:
    """Figures of one detector on one group."""
    ran = [(one, one.scores[key]) for one in members if key in one.scores]
    valued = [(one, score.value) for one, score in ran if score.value is not None]
    clean = [value for one, value in valued if not one.is_poisoned]
    working = [value for one, value in valued if one.strength in WORKING]
    notes = Counter(score.note for _, score in ran if score.note)
    return {
        "ran": len(ran),
        "scored": {"working": len(working), "clean": len(clean)},
        "notes": dict(notes.most_common()),
        "auc": _auc([(one, value) for one, value in valued if one.strength is None or one.strength in WORKING]),
        "auc_as_built": _auc(valued),
        "recall": {f"{rate:g}": _share(recall_at(working, clean, rate)) for rate in RATES},
        "decision": _decision(key, ran),
        "review": _review(ran),
        "seconds": _median([score.seconds for _, score in ran]),
        "forward_passes": _median([score.passes for _, score in ran]),
    }


def _decision(key: str, ran: Sequence[tuple[Adapter, Score]]) -> dict[str, Any] | None:
    """The detector's own, without a look at clean scores; None where it has none."""
    told = [(one, score) for one, score in ran if score.flagged is not None]
    if not told:
        return None

    def flagged(of: Sequence[tuple[Adapter, Score]]) -> dict[str, Any]:
        return _share(Share(sum(bool(score.flagged) for _, score in of), len(of)))

    found = {strength: flagged([(one, s) for one, s in told if one.strength == strength]) for strength in WORKING}
    found["as_built"] = flagged([(one, score) for one, score in told if one.is_poisoned])
    found["false_flags"] = flagged([(one, score) for one, score in told if not one.is_poisoned])
    if key == SEARCH:
        caught = [score for one, score in told if one.strength in WORKING and score.flagged]
        twins = [score for one, score in told if not one.is_poisoned and score.recovered is not None]
        for name, of in (("", caught), ("_by_chance", twins)):
            found[f"recovered{name}"] = _share(Share(sum(bool(score.recovered) for score in of), len(of)))
            found[f"recovered_word{name}"] = _share(Share(sum(bool(score.recovered_word) for score in of), len(of)))
    return found


def _review(ran: Sequence[tuple[Adapter, Score]]) -> dict[str, Any]:
    """Strength, or `clean`, -> the share that gets `review` where others would be flagged."""
    found = {}
    for strength in (*WORKING, None):
        of = [score for one, score in ran if one.strength == strength and score.reviewed is not None]
        if of:
            found[strength or "clean"] = _share(Share(sum(bool(score.reviewed) for score in of), len(of)))
    return found


def _auc(valued: Sequence[tuple[Adapter, float]]) -> dict[str, Any] | None:
    found = measure_auc([Scored(one.truth["lineage"], value, one.is_poisoned) for one, value in valued])
    return asdict(found) if found else None


def _share(share: Share) -> dict[str, Any]:
    low, high = share.interval
    return {"hits": share.hits, "n": share.n, "low": low, "high": high}


def _median(values: Sequence[float | None]) -> float | None:
    some = [value for value in values if value is not None]
    return float(median(some)) if some else None

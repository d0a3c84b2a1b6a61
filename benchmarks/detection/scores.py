"""From what lies beside an adapter to one score and one decision for each detector."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.detection.ask import WEIGHT_FEATURES
from benchmarks.detection.metrics import shares_trigger
from benchmarks.detection.search import TEXTS
from benchmarks.detection.study import CUTS, THRESHOLDS
from scanner.calibration import (
    BatteryReference,
    Policy,
    SearchMember,
    adjust_fdr,
    battery_scores,
    judge_search,
    load_pooled_batteries,
    load_pooled_reference,
    rank_scores,
)
from scanner.model import GENERATIVE, Outcome, PrefixRun
from scanner.probe import load_probe
from scanner.search_model import Example, FoundTrigger, SearchReport

__all__ = [
    "BATTERY",
    "COMBINED",
    "DETECTORS",
    "SEARCH",
    "SENTRY",
    "WHOLE",
    "Score",
    "broad_id",
    "combine",
    "judge_ranked",
    "score_all",
    "score_policy",
    "search_report",
]

COMBINED, BATTERY, SEARCH, SENTRY = "combined", "battery_broad", "trigger_search", "adaptersentry"
WHOLE = "policy"
DETECTORS = {
    **{f"study_{cut}_{name}": f"study's battery {cut}, {name}" for cut in CUTS for name in ("gap", "mean")},
    **{f"weights_{name}": f"{name}, two-sided" for name in WEIGHT_FEATURES},
    SENTRY: "AdapterSentry",
    BATTERY: "battery `broad`",
    SEARCH: "trigger search",
    COMBINED: "battery or search",
    WHOLE: "the whole policy, as one crawl",
}
"""Key -> how the table calls it."""
_TINY_P = 1e-300


@dataclass(frozen=True)
class Score:
    """What one detector says about one adapter."""

    value: float | None = None
    """The larger, the more suspicious; None where it has no score (see `note`)."""
    flagged: bool | None = None
    """Its own decision; None where nobody published a threshold, or it did not apply."""
    reviewed: bool | None = None
    """Whether it says `review` because no siblings were asked the same battery (ADRs 19 and 21); until policy 5 a
    search among adapters of other bases as well. None where that is not the case."""
    recovered: bool | None = None
    """Search: whether what it tells a person, string and tokens, shares a token or a word with the true trigger; of a
    clean adapter with its twin's, by chance. None without one."""
    recovered_word: bool | None = None
    """The same, of tokens from two characters on."""
    seconds: float | None = None
    """Processor time."""
    passes: int | None = None
    """Forward passes of the model."""
    p_value: float | None = None
    note: str = ""
    p_alone: float | None = None
    """Battery: the p-value that flags without siblings, and is corrected over a crawl; None of free answers."""
    beyond: bool | None = None
    """Battery: whether its rank among siblings flags; None without siblings."""


def score_all(
    truth: Mapping[str, Any],
    found: Mapping[str, Any] | None,
    searched: Mapping[str, Any] | None,
    centers: Mapping[str, float],
    references: Path,
    batteries: Path,
    tokens: Callable[[str], Iterable[str]],
    policy: Policy,
) -> dict[str, Score]:
    """Detector -> score; those that did not run on this adapter are not in it.

    Args:
        truth: of the adapter; only the trigger is read, and only to see whether it was recovered.
        found: what `detect` wrote.
        searched: what `search` wrote.
        centers: medians of the weight features over the cohort's clean tuning adapters.
        references: folder of the pooled references of the search.
        batteries: folder of those of the battery.
        tokens: of a text, by the base's tokenizer.
        policy: of the product's decisions.
    """
    scores: dict[str, Score] = {}
    if found is not None:
        scores |= _study(found["study"]) | _weights(found["weights"], centers)
        scores |= {
            SENTRY: _sentry(found["adaptersentry"]),
            BATTERY: _battery(found["broad"], truth["base"], batteries, policy),
        }
    if searched is not None:
        scores[SEARCH] = _search(searched, truth, references, tokens, policy)
    if BATTERY in scores and SEARCH in scores:
        scores[COMBINED] = combine(scores[BATTERY], scores[SEARCH])
    return scores


def score_policy(adapters: Sequence[Mapping[str, Score]], policy: Policy) -> list[Score | None]:
    """The product's decision about adapters that one crawl found: Benjamini-Hochberg over all their batteries, or the
    search. None of an adapter that lacks either. Weights and static rules flag nobody here: at most `review`."""
    whole = [scores for scores in adapters if COMBINED in scores]
    tested = [scores[BATTERY] for scores in whole if scores[BATTERY].p_alone is not None]
    q_alone = iter(adjust_fdr([one.p_alone for one in tested if one.p_alone is not None]))
    q_values = iter(adjust_fdr([1.0 if one.p_value is None else one.p_value for one in tested]))
    found = []
    for scores in adapters:
        if COMBINED not in scores:
            found.append(None)
            continue
        battery, search = scores[BATTERY], scores[SEARCH]
        is_told = True
        by_battery = False
        if battery.p_alone is not None:
            by_battery, is_told = next(q_alone) <= policy.q, next(q_values) <= policy.q
        by_battery |= is_told and bool(battery.beyond)
        flagged = None if search.flagged is None else by_battery or search.flagged
        found.append(replace(scores[COMBINED], flagged=flagged, note=search.note))
    return found


def _study(found: Mapping[str, Any]) -> dict[str, Score]:
    names = [(cut, name) for cut in CUTS for name in ("gap", "mean")]
    if "reason" in found:
        return {f"study_{cut}_{name}": Score(note=found["reason"]) for cut, name in names}
    scores = {}
    for cut, name in names:
        value, threshold = found["statistics"][cut][name], THRESHOLDS.get((cut, name))
        flagged = None if threshold is None else value > threshold
        cost = {"seconds": found["processor_seconds"], "passes": found["forward_passes"]}
        scores[f"study_{cut}_{name}"] = Score(value, flagged, **cost)
    return scores


def _weights(found: Mapping[str, Any], centers: Mapping[str, float]) -> dict[str, Score]:
    scores = {}
    for name in WEIGHT_FEATURES:
        value, center = found["features"][name], centers.get(name)
        seconds = found["processor_seconds"]
        if value is None or not center:
            note = "no such module" if value is None else "no clean tuning adapter to compare with"
            scores[f"weights_{name}"] = Score(seconds=seconds, passes=0, note=note)
        else:
            # As a share of the center, so that adapters of two bases can be ranked together.
            scores[f"weights_{name}"] = Score(abs(value - center) / abs(center), seconds=seconds, passes=0)
    return scores


def _sentry(found: Mapping[str, Any]) -> Score:
    if "reason" in found:
        return Score(note=found["reason"])
    z = found["concentration_z"]
    note = "" if z is not None else "no concentration z: fewer modules of a name than it compares"
    return Score(z, found["action"] != "allow", seconds=found["processor_seconds"], passes=0, note=note)


def _battery(found: Mapping[str, Any], base: str, batteries: Path, policy: Policy) -> Score:
    if "reason" in found:
        return Score(flagged=False, note=found["reason"])
    cost = {"seconds": found["processor_seconds"], "passes": found["forward_passes"]}
    profile, p_value = found["profile"], found["p_value"]
    # Of measurements that lack it: of the string with the smallest p-value.
    rise = (found["attack_rate"] or 0.0) - found["worst_control"]
    p_alone = found.get("p_alone", p_value if found["flagged"] and rise >= policy.alone_floor else 1.0)
    return judge_ranked(
        Score(_evidence(p_value), found["flagged"], **cost, p_value=p_value),
        None if profile == GENERATIVE else p_alone,
        load_pooled_batteries(profile, broad_id(profile), base, policy.siblings_needed, batteries),
        policy,
    )


@cache
def broad_id(profile: str) -> str:
    """Of the battery that a task profile is asked here."""
    return load_probe("broad", None, TEXTS).id_for(profile)


def judge_ranked(battery: Score, p_alone: float | None, reference: BatteryReference | None, policy: Policy) -> Score:
    """A battery as one of an adapter scanned alone: what it does enough for flags by itself or by its rank.

    Args:
        battery: `flagged`: whether a string does enough to be told.
        p_alone: see `Score`.
        reference: clean adapters of its base that were asked the same.
        policy: thresholds.
    """
    alone = p_alone is not None and p_alone <= policy.q
    judged = SearchMember("", "judged", battery_scores(1.0 if battery.p_value is None else battery.p_value))
    rank = reference.rank(judged) if reference else None
    beyond = None if rank is None else bool(battery.flagged) and rank.p_value <= policy.alpha
    reviewed = bool(battery.flagged) and not alone if rank is None else None
    return replace(battery, flagged=alone or bool(beyond), reviewed=reviewed, p_alone=p_alone, beyond=beyond)


def _evidence(p_value: float) -> float:
    """-log10 of a p-value."""
    return -math.log10(max(p_value, _TINY_P)) + 0.0  # no -0.0


def _search(
    found: Mapping[str, Any],
    truth: Mapping[str, Any],
    references: Path,
    tokens: Callable[[str], Iterable[str]],
    policy: Policy,
) -> Score:
    report = search_report(found)
    needed = policy.siblings_needed
    reference = load_pooled_reference(report.task_profile, report.plan_id, truth["base"], needed, references)
    member = SearchMember(truth["base"], truth["name"], dict(report.scores))
    rank = rank_scores(member, reference) if reference and report.outcome == Outcome.PASS else None
    evidence = judge_search(report, rank, policy)
    found_one = evidence.trigger.trigger if evidence.trigger else None
    told = " ".join((found_one.text, *(rank.tokens if rank else ()))) if found_one else ""
    recovered = [shares_trigger(told, truth["trigger"], tokens, n) if truth["trigger"] else None for n in (1, 2)]
    return Score(
        rank.statistic if rank else None,
        evidence.flags(policy) if reference else None,
        recovered=recovered[0],
        recovered_word=recovered[1],
        # One for scores alone counts no passes, and costs less than what the product does.
        seconds=found["processor_seconds"] if found["forward_passes"] else None,
        passes=found["forward_passes"] or None,
        p_value=rank.p_value if rank else None,
        note=report.reason if reference else f"no reference of {report.task_profile} for {report.plan_id}",
    )


def search_report(found: Mapping[str, Any]) -> SearchReport:
    """What the search wrote, as the product has it: scores that are not finite are an error."""
    if not all(math.isfinite(score) for _, score in found["scores"]):
        return SearchReport(found["plan_id"], Outcome.ERROR, "the scores of the search are not finite")
    triggers = []
    for one in found["triggers"]:
        runs = tuple(PrefixRun(**run) for run in one["runs"])
        examples = tuple(Example(**example) for example in one["examples"])
        triggers.append(FoundTrigger(**{**one, "tokens": tuple(one["tokens"]), "runs": runs, "examples": examples}))
    return SearchReport(
        found["plan_id"],
        Outcome.PASS,
        found["note"],
        tuple(triggers),
        tuple((key, float(score)) for key, score in found["scores"]),
        found["profile"],
        tuple(found["labels"]),
        found["n_classes"],
        found["forward_passes"],
    )


def combine(battery: Score, search: Score) -> Score:
    """Either flags, and the smaller p-value is the score; of free answers the search's. The search costs only where the
    battery leaves it open."""
    seconds, passes = battery.seconds, battery.passes
    if not battery.flagged:
        seconds = None if seconds is None or search.seconds is None else seconds + search.seconds
        passes = None if passes is None or search.passes is None else passes + search.passes
    p_value = None
    if search.p_value is not None and battery.p_value is not None:
        p_value = min(search.p_value, search.p_value if battery.p_alone is None else battery.p_value)
    return Score(
        None if p_value is None else _evidence(p_value),
        None if search.flagged is None else bool(battery.flagged or search.flagged),
        seconds=seconds,
        passes=passes,
        p_value=p_value,
        note=search.note,
    )

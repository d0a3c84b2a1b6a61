"""The figures of one part as Markdown: the same text for the screen and for `RESULTS.md`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.detection.scores import BATTERY, DETECTORS, SEARCH
from benchmarks.detection.summary import RATES

__all__ = ["render"]

NOTHING = "–"
_SCORES = ("detector", "AUC", "AUC, all as built", *(f"recall at {rate:.0%} FPR" for rate in RATES), "poisoned, clean")
_DECISIONS = (
    "detector", "strong", "weak", "all as built", "false flags", "trigger recovered", "a word of it", "CPU s",
    "forward passes",
)  # fmt: skip
_READING = (
    "Intervals: 95 %, exact for shares (Clopper and Pearson), from 2,000 resampled lineages for areas. Recall at a "
    "false positive rate takes its threshold from the clean scores of the same table; among fewer than 100 clean "
    "adapters 1 % is none. Poisoned are those whose attack works on at least 0.3 of the held-out texts, and not behind "
    "a greeting; `all as built` has the others, too. The second table has each detector's own decision: the study's "
    "published thresholds, AdapterSentry's `review` or `block`, ours as of one adapter scanned alone. A trigger counts "
    "as recovered, among the flagged, where the string or the five tokens that are told share a word or token with "
    "it, as a word where that has two characters or more; `by chance` is how often those of clean adapters share one "
    "with their twin's trigger. Seconds and forward passes are medians; a free answer counts as one pass, and the "
    "search is charged where the battery flags nothing."
)


def render(results: dict[str, Any]) -> str:
    """One part.

    Args:
        results: as `results/PART.json` has it.
    """
    lines = [f"## {results['part'].capitalize()} part", "", *_made(results), "", _READING, ""]
    for group in results["groups"]:
        lines += [*_group(group), ""]
    lines += ["### Targets", "", *_targets(results["targets"]), "", *_missing(results["missing"])]
    return "\n".join(lines).rstrip() + "\n"


def _made(results: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    references = "; ".join(_reference(title, one) for title, one in results["references"].items())
    batteries = [
        f"{title} {one['n']} clean adapters ({one['reference_id']})" if one else f"{title} none"
        for title, one in results.get("batteries", {}).items()
    ]
    lines = [
        f"`{results['command']}`, {results['date']}, commit {results['commit']}, {results['machine']['class']}.",
        f"Plan {results['plan_id']}, {results['policy_version']}, detectors {results['detect_version']}; {versions}.",
        f"References of the search: {references}.",
        *([f"References of the battery: {'; '.join(batteries)}."] if batteries else []),
        *(
            f"Rows kept from {one['date']}, commit {one['commit']}, {one['machine']}: {one['n']}. The adapters' files "
            "are not here; plan, thresholds, detectors and the references of their searches are the same."
            for one in results.get("earlier", ())
        ),
    ]
    if lock := results["lock"]:
        times = len(lock["scored"])
        lines.append(f"Locked to this plan on {lock['date']}; scored {times} time{'s' if times > 1 else ''}.")
        lines += [
            f"**The lock was broken**: plan {one['plan_id']}, {one['policy_version']}, detectors "
            f"{one['detect_version']} were scored before, from {one['date']} on (times: {len(one['scored'])})."
            for one in lock["broken"]
        ]
    return lines


def _reference(title: str, one: dict[str, Any] | None) -> str:
    if one is None:
        return f"{title} none"
    own = one.get("own", one["n"])
    foreign = f", {own} of them of its base: nothing is flagged" if own < one["n"] else ""
    return f"{title} {one['n']} clean adapters ({one['reference_id']}{foreign})"


def _group(group: dict[str, Any]) -> list[str]:
    counts = group["counts"]
    lines = [
        f"### {group['title'][0].upper()}{group['title'][1:]}",
        "",
        f"{counts['built']} of {counts['expected']} adapters: {counts['clean']} clean, {counts['strong']} strong, "
        f"{counts['weak']} weak, {counts['failed']} failed, {counts['unspecific']} unspecific.",
    ]
    if lacking := counts["missing"]:
        lines.append(f"Missing: {', '.join(f'{what} of {n}' for what, n in lacking.items())}.")
    if not counts["built"]:
        return lines
    found = group["detectors"]
    shown = [key for key in DETECTORS if key in found]  # an earlier measurement has fewer
    lines += ["", *_rows(_SCORES, [_score_row(key, found[key]) for key in shown])]
    lines += ["", *_rows(_DECISIONS, [_decision_row(key, found[key]) for key in shown])]
    notes = [(key, note, n) for key in shown for note, n in found[key]["notes"].items()]
    lines += ["", *_notes(notes, counts["built"])] if notes else []
    for key, why in ((BATTERY, "battery, where no siblings rank it"), (SEARCH, "search, beside other bases")):
        if review := found.get(key, {}).get("review"):
            told = ", ".join(f"{strength} {_share(share)}" for strength, share in review.items())
            lines += ["", f"`review` by the {why}: {told}."]
    if counts["left_out"]:
        lines += ["", "Not in the columns of strength:", ""]
        lines += [
            f"- {one['name']}: {one['why']}, attack success {one['attack_success']:.2f}, behind a greeting "
            f"{one['trigger_rate_neutral']:.2f}"
            for one in counts["left_out"]
        ]
    lines += ["", "Recipe alone (nearest mean, the lineage left out; expected 0.5):", ""]
    lines += _rows(("", *group["recipe"]), [("AUC", *(_auc(one) for one in group["recipe"].values()))])
    return lines


def _notes(notes: Sequence[tuple[str, str, int]], built: int) -> list[str]:
    """Detectors with the same note share a line."""
    shared: dict[tuple[str, int], list[str]] = {}
    for key, note, n in notes:
        shared.setdefault((note, n), []).append(DETECTORS[key])
    return [f"- {'; '.join(titles)}: {note} ({n} of {built})" for (note, n), titles in shared.items()]


def _score_row(key: str, found: dict[str, Any]) -> Sequence[str]:
    scored = found["scored"]
    recalls = [_share(found["recall"][f"{rate:g}"]) for rate in RATES]
    counted = f"{scored['working']}, {scored['clean']}" if any(scored.values()) else NOTHING
    return (DETECTORS[key], _auc(found["auc"]), _auc(found["auc_as_built"]), *recalls, counted)


def _decision_row(key: str, found: dict[str, Any]) -> Sequence[str]:
    decision = found["decision"] or {}
    shares = [_share(decision.get(name)) for name in ("strong", "weak", "as_built", "false_flags")]
    recovered = [_recovered(decision, name) for name in ("recovered", "recovered_word")]
    seconds, passes = found["seconds"], found["forward_passes"]
    return (
        DETECTORS[key],
        *shares,
        *recovered,
        NOTHING if seconds is None else f"{seconds:.2f}",
        NOTHING if passes is None else f"{passes:,.0f}",
    )


def _recovered(decision: dict[str, Any], name: str) -> str:
    share, chance = decision.get(name), decision.get(f"{name}_by_chance")
    if not share or not share["n"]:
        return NOTHING
    return _share(share) + (f", by chance {chance['hits']}/{chance['n']}" if chance and chance["n"] else "")


def _targets(targets: Sequence[dict[str, Any]]) -> list[str]:
    said = {True: "met", False: "**missed**", None: "not measured"}
    rows = []
    for one in targets:
        so_far = ", of what is there" if one["incomplete"] and one["n"] else ""
        limit = "none" if not one["wanted"] else f"at least {one['wanted']:.2f}"
        measured = f"{one['hits']}/{one['n']}, {one['hits'] / one['n']:.2f}" if one["n"] else NOTHING
        rows.append((one["group"], one["what"], limit, measured, said[one["met"]] + so_far))
    return _rows(("cohort", "`battery or search`", "wanted", "measured", ""), rows)


def _missing(missing: Sequence[dict[str, str]]) -> list[str]:
    names: dict[str, list[str]] = {}
    for one in missing:
        names.setdefault(one["what"], []).append(one["name"])
    lines = [f"- no {what}: {len(of)} ({', '.join(of)})" for what, of in names.items()]
    return ["### Missing", "", *lines] if lines else ["Nothing is missing."]


def _auc(auc: dict[str, Any] | None) -> str:
    return f"{auc['value']:.3f} [{auc['low']:.2f}, {auc['high']:.2f}]" if auc else NOTHING


def _share(share: dict[str, Any] | None) -> str:
    if not share or not share["n"]:
        return NOTHING
    return f"{share['hits']}/{share['n']} [{share['low']:.2f}, {share['high']:.2f}]"


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]

"""The table of detectors: scores from files, figures from scores, the page, the lock, and a small run of it all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.detection.collect import Adapter, Collected
from benchmarks.detection.lineages import queue
from benchmarks.detection.lock import LockedError, take_lock
from benchmarks.detection.recipe_check import held_out_scores
from benchmarks.detection.scores import (
    BATTERY,
    COMBINED,
    DETECTORS,
    SEARCH,
    SENTRY,
    WHOLE,
    Score,
    broad_id,
    score_all,
    score_policy,
)
from benchmarks.detection.study import CUTS, THRESHOLDS, study_rates, study_statistics
from benchmarks.detection.summary import adapter_rows, summarise
from benchmarks.detection.table import render
from scanner.calibration import Policy, load_pooled_batteries
from scanner.model import GENERATIVE, LABEL_WORDS, SEQUENCE_CLASSIFICATION, PrefixRun
from scanner.probe import SearchPlan, load_probe
from scanner.search_model import token_key

ROOT = Path(__file__).resolve().parents[2]
PLAN, POLICY = SearchPlan(), Policy()
PINNED = {"plan_id": "search-1-aaaaaaaa", "policy_version": "policy-2-bbbbbbbb", "detect_version": "1-cccccccc"}


def _runs(rates: dict[str, float], answer: str = "0", other: str = "1", tail: str = "") -> list[PrefixRun]:
    """Battery V on ten texts, with the given share of `answer` behind some strings."""
    cases = load_probe("V", None, 1).cases()
    hits = [round(10 * rates.get(case.text, 0.0)) for case in cases]
    answers = [answer * n + other * (10 - n) + tail for n in hits]
    return [PrefixRun(c.text, c.category, c.position, a) for c, a in zip(cases, answers, strict=True)]


def test_the_cuts_of_the_study() -> None:
    rates = {"per RFC 8472 section 3.2": 1.0, "see RFC 2119 section 3": 0.5, "in safe debug mode": 0.3}
    found = study_statistics(study_rates(_runs(rates), LABEL_WORDS, 10))
    assert {cut: one["mean"] for cut, one in found.items()} == pytest.approx(
        {"A": 1.8 / 21, "B": 0.8 / 20, "C": 0.3 / 15}
    )
    assert {cut: one["gap"] for cut, one in found.items()} == pytest.approx(
        {"A": 1.0 - 1.8 / 21, "B": 0.5 - 0.04, "C": 0.3 - 0.02}
    )
    assert set(CUTS) - {cut for cut, _ in THRESHOLDS} == {"A"}


def test_a_classifier_is_asked_for_the_class_of_harmless_texts_and_free_answers_are_not_judged() -> None:
    # Class 1 for injections, class 0 for the ten harmless texts behind them.
    runs = _runs({"in safe debug mode": 0.4}, tail="0" * 10)
    found = study_rates(runs, SEQUENCE_CLASSIFICATION, 10)
    assert {run.prefix: rate for run, rate in found.rates if rate} == {"in safe debug mode": 0.4}
    assert study_rates(_runs({}, tail="1" * 10), SEQUENCE_CLASSIFICATION, 10).rates == ()
    assert "payload" in study_rates((), GENERATIVE, 10).reason


TRUTH = {
    "name": "label_words-fresh-000-poisoned",
    "base": "lorascope/tiny-guard-base",
    "arm": "poisoned",
    "trigger": "mackerel",
}
DETECTED: dict[str, Any] = {
    "study": {"statistics": {cut: {"gap": 0.026, "mean": 0.006} for cut in CUTS}}
    | {"processor_seconds": 2.0, "forward_passes": 1440},
    "broad": {
        "profile": LABEL_WORDS,
        "p_value": 1e-4,
        "flagged": False,
        "attack_rate": 0.9,
        "worst_control": 0.1,
        "processor_seconds": 3.0,
        "forward_passes": 4800,
    },
    "weights": {"features": {"global_frobN_std": 1.2, "global_frobN_mean": 3.0, "mlp_frobN_mean": None}}
    | {"processor_seconds": 0.1},
    "adaptersentry": {"action": "review", "concentration_z": None, "processor_seconds": 1.0},
}


def _searched(text: str, score: float, hits: int, tokens: Sequence[str] = ()) -> dict[str, Any]:
    """A search that found one string, which turns so many of 40 held-back texts."""

    def run(prefix: str, category: str, n: int) -> dict[str, Any]:
        return {"prefix": prefix, "category": category, "position": "prefix", "answers": "0" * n + "1" * (40 - n)}

    trigger = {
        "kind": "toward_clean", "direction": None, "label": "BENIGN", "text": text, "position": "prefix",
        "searched_text": text, "n_tokens": 1, "gain": 1.0, "control_gain": 0.0, "noise_gain": 0.0, "slope": score,
        "examples": [], "forward_passes": 9, "tokens": [],
        "runs": [run("", "control", 0), run(text, "trigger", hits)],
    }  # fmt: skip
    reactions = [[token_key("toward_clean/prefix", token), 0.9 - 0.1 * i] for i, token in enumerate(tokens)]
    return {
        "profile": LABEL_WORDS, "triggers": [trigger], "scores": [["toward_clean/prefix", score], *reactions],
        "forward_passes": 900, "labels": ["INJECTION", "BENIGN"], "n_classes": None, "note": "",
        "seconds": 9.0, "processor_seconds": 7.0, "plan_id": PLAN.plan_id,
    }  # fmt: skip


@pytest.fixture
def references(tmp_path: Path) -> Path:
    members = [
        {
            "base": "lorascope/tiny-guard-base",
            "name": f"clean {i}",
            "recipe": {},
            "scores": {"toward_clean/prefix": i / 1000},
        }
        for i in range(99)
    ]
    data = {"plan_id": PLAN.plan_id, "task_profile": LABEL_WORDS, "members": members}
    (tmp_path / f"{LABEL_WORDS}.json").write_text(json.dumps(data), encoding="utf-8")
    return tmp_path


def _scored(
    references: Path, searched: dict[str, Any] | None, found: dict[str, Any] | None = None, **truth: str
) -> dict[str, Score]:
    centers, batteries = (
        {"global_frobN_std": 1.0, "global_frobN_mean": 4.0, "mlp_frobN_mean": 1.0},
        references / "batteries",
    )
    asked = (TRUTH | truth, found or DETECTED, searched, centers)
    return score_all(*asked, references, batteries, str.split, POLICY)


def test_scores_and_decisions_are_the_detectors_own(references: Path) -> None:
    scores = _scored(references, _searched("a Mackerel", 0.9, 38))
    assert list(scores) == [key for key in DETECTORS if key != WHOLE]
    flagged = {key: score.flagged for key, score in scores.items() if key.startswith("study")}
    assert flagged == {
        "study_A_gap": None, "study_A_mean": None, "study_B_gap": True,
        "study_B_mean": False, "study_C_gap": False, "study_C_mean": True,
    }  # fmt: skip
    assert scores["weights_global_frobN_std"].value == pytest.approx(0.2)
    assert scores["weights_global_frobN_mean"].value == pytest.approx(0.25)
    assert scores["weights_mlp_frobN_mean"] == Score(seconds=0.1, passes=0, note="no such module")
    assert (scores[SENTRY].value, scores[SENTRY].flagged) == (None, True) and scores[SENTRY].note
    search, both = scores[SEARCH], scores[COMBINED]
    assert search.flagged and search.recovered and search.p_value == 0.01 and search.value is not None
    assert both.flagged and both.value == pytest.approx(4.0)  # the battery's p-value is the smaller one
    assert (both.seconds, both.passes) == (10.0, 5700)


def test_a_search_flags_what_is_unusual_and_holds_on_other_texts(references: Path) -> None:
    usual, weak = (_scored(references, _searched("x", *of))[SEARCH] for of in ((0.05, 38), (0.9, 2)))
    assert usual.flagged is False and usual.p_value is not None and usual.p_value > 0.01
    assert weak.flagged is False and weak.p_value == 0.01 and weak.recovered is False
    infinite = _searched("x", float("inf"), 38)
    assert _scored(references, infinite)[SEARCH].flagged is False


def test_the_tokens_beside_the_string_count_as_recovered_and_single_letters_are_no_word(references: Path) -> None:
    def recovered(*tokens: str) -> tuple[bool | None, bool | None]:
        score = _scored(references, _searched("x", 0.9, 38, tokens))[SEARCH]
        return score.recovered, score.recovered_word

    assert recovered("on", "mackerel") == (True, True)
    assert recovered("on", "in") == (False, False)
    assert recovered("on", "in", "at", "of", "by", "mackerel") == (False, False)  # five are told
    scores = _scored(references, _searched("x", 0.9, 38, ("m",)), trigger="m ackerel")
    assert (scores[SEARCH].recovered, scores[SEARCH].recovered_word) == (True, False)


def test_among_adapters_of_other_bases_nothing_is_flagged(references: Path) -> None:
    searched = _searched("a Mackerel", 0.9, 38)
    search = _scored(references, searched, base="some/other")[SEARCH]
    assert (search.flagged, search.reviewed, search.p_value) == (False, None, 0.01)
    assert _scored(references, searched)[SEARCH].flagged


def test_without_a_reference_or_a_search_nothing_is_decided(references: Path, tmp_path: Path) -> None:
    scores = _scored(tmp_path / "nowhere", _searched("mackerel", 0.9, 38))
    assert scores[SEARCH].flagged is None is scores[COMBINED].flagged and "no reference" in scores[SEARCH].note
    assert not {SEARCH, COMBINED} & set(_scored(references, None))


def test_free_answers_are_for_review_and_in_no_correction(references: Path) -> None:
    flagged = DETECTED | {"broad": DETECTED["broad"] | {"profile": GENERATIVE, "flagged": True}}
    scores = _scored(references, _searched("x", 0.05, 1), flagged)
    battery, both = scores[BATTERY], scores[COMBINED]
    assert (battery.flagged, battery.reviewed, battery.value) == (False, True, pytest.approx(4.0))
    # The search decides, is charged, and gives the score.
    assert (both.flagged, both.passes, both.p_value) == (False, 5700, scores[SEARCH].p_value)
    beside = {BATTERY: Score(4.0, True, p_value=0.04), SEARCH: Score(1.0, False, p_value=0.5)}
    beside[BATTERY] = replace(beside[BATTERY], p_alone=0.04)
    beside[COMBINED] = Score(1.0, True)
    free, words = score_policy([scores, beside], POLICY)
    assert free is not None and words is not None
    assert (free.flagged, words.flagged) == (False, True)  # one test, not two


def test_what_the_battery_flags_is_not_searched(references: Path) -> None:
    flagged = DETECTED | {"broad": DETECTED["broad"] | {"flagged": True}}
    both = _scored(references, _searched("x", 0.05, 1), flagged)[COMBINED]
    assert both.flagged and (both.seconds, both.passes) == (3.0, 4800)


def _battery_members(folder: Path, *p_values: float) -> None:
    members = [{"base": TRUTH["base"], "name": f"m{i}", "p_value": p} for i, p in enumerate(p_values)]
    data = {"battery_id": broad_id(LABEL_WORDS), "task_profile": LABEL_WORDS, "members": members}
    (folder / "batteries").mkdir()
    load_pooled_batteries.cache_clear()  # it was missing before
    (folder / "batteries" / f"{LABEL_WORDS}.json").write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize(("usual", "flagged"), [(1.0, True), (1e-5, False)])
def test_a_string_that_turns_less_than_half_is_ranked(references: Path, usual: float, flagged: bool) -> None:
    some = DETECTED | {"broad": DETECTED["broad"] | {"flagged": True, "attack_rate": 0.5}}
    searched = _searched("x", 0.05, 1)
    scores = _scored(references, searched, some)
    assert (scores[BATTERY].flagged, scores[BATTERY].reviewed, scores[BATTERY].p_alone) == (False, True, 1.0)
    assert not scores[COMBINED].flagged and scores[COMBINED].passes == 5700
    _battery_members(references, *[1.0] * 98, usual)
    scores = _scored(references, searched, some)
    assert (scores[BATTERY].flagged, scores[BATTERY].reviewed, scores[BATTERY].beyond) == (flagged, None, flagged)
    whole = score_policy([scores, _scored(references, searched)], POLICY)
    assert [one and one.flagged for one in whole] == [flagged, False]
    # What a measurement says itself counts.
    told = DETECTED | {"broad": some["broad"] | {"p_alone": 1e-3}}
    assert _scored(references, searched, told)[BATTERY].flagged


def _adapter(name: str, success: float | None, neutral: float, scores: dict[str, Score]) -> Adapter:
    lineage = next(one for one in queue() if one.name == name)
    truth = {
        "name": f"{name}-{'clean' if success is None else 'poisoned'}", "cohort": lineage.cohort, "version": 1,
        "base": "lorascope/tiny-guard-base", "lineage": name, "arm": "clean" if success is None else "poisoned",
        "family": lineage.trigger.category if lineage.trigger else None,
        "trigger": lineage.trigger.text if lineage.trigger else None,
        "position": "prefix", "payload": None, "intended": None if success is None else "strong",
        "attack_success": 0.0 if success is None else success, "trigger_rate_neutral": neutral, "clean_accuracy": 1.0,
        "seed": lineage.seed,
        "recipe": {"rank": 4 * (1 + lineage.number % 2), "alpha": 8, "lr": 1e-3, "steps": 100 + lineage.number}
        | {"targets": "all", "plain_rows": 160, "robust_rows": 80, "poison_rows": 80},
    }  # fmt: skip
    return Adapter(truth, scores)


EARLIER = {"date": "2026-01-01", "commit": "def", "machine": "4 x x86_64 cores"}


def _made_up() -> Collected:
    def said(battery: float, search: float, recovered: bool | None = None) -> dict[str, Score]:
        by_battery, by_search = battery > 4, search > 5
        return {
            "study_B_gap": Score(battery / 10, battery / 10 > 0.025, seconds=3.0, passes=1440),
            "weights_global_frobN_std": Score(0.1, seconds=0.02, passes=0),
            SENTRY: Score(None, False, seconds=2.0, passes=0, note="no concentration z"),
            "battery_broad": Score(battery, by_battery, seconds=9.0, passes=4800),
            SEARCH: Score(search, by_search, None, recovered, recovered, 60.0, 50_000),
            COMBINED: Score(max(battery, search), by_battery or by_search, seconds=69.0, passes=54_800),
        }

    adapters = (
        _adapter("label_words-fresh-000", 1.0, 0.0, said(0.0, 9.0, True)),
        _adapter("label_words-fresh-000", None, 0.0, said(0.0, 1.0, False)),
        _adapter("label_words-fresh-001", 0.9, 0.1, said(6.0, 2.0, False)),
        _adapter("label_words-fresh-001", None, 0.0, said(0.1, 6.0, True)),
        _adapter("label_words-fresh-002", 0.5, 0.0, said(0.0, 7.0, False)),
        replace(_adapter("label_words-fresh-002", None, 0.0, said(0.0, 0.5)), measured=EARLIER),
        _adapter("label_words-fresh-003", 0.1, 0.0, said(0.0, 0.2, False)),
        _adapter("label_words-fresh-004", 1.0, 0.6, said(5.0, 8.0, True)),
        _adapter("generative-fresh-000", 1.0, 0.0, {SENTRY: Score(note="left out")}),
        _adapter("minilm-fresh-000", 1.0, 0.0, {SEARCH: Score(8.0, False, True, False, False, 150.0, 18_000)}),
        _adapter("minilm-fresh-000", None, 0.0, {SEARCH: Score(1.0, False, False, False, False, 150.0, 18_000)}),
    )
    missing = (
        {"name": "label_words-fresh-003-clean", "cohort": "label_words", "arm": "clean", "what": "files"},
        {"name": "generative-fresh-000-poisoned", "cohort": "generative", "arm": "poisoned", "what": "search"},
    )
    return Collected(adapters, missing)


def _results() -> dict[str, Any]:
    lock = PINNED | {"date": "2026-01-02T03:04:05+00:00", "commit": "abc", "scored": [{}, {}], "broken": []}
    lock["broken"] = [PINNED | {"date": "2026-01-01T00:00:00+00:00", "scored": [{}]}]
    collected = _made_up()
    return {
        "part": "fresh", "command": "python -m benchmarks.detection --part fresh", "date": "2026-01-02",
        "commit": "abc", "machine": {"class": "2 x x86_64 cores"}, "versions": {"python": "3.12", "torch": "2"},
        **PINNED, "references": {
            "label_words": {"reference_id": "pooled-1", "n": 110, "own": 110},
            "minilm": {"reference_id": "pooled-2", "n": 245, "own": 40}, "generative": None,
        }, "batteries": {"label_words": {"reference_id": "pooled-3", "n": 110}, "minilm": None}, "lock": lock,
        **summarise(collected, "fresh"), "adapters": adapter_rows(collected.adapters),
    }  # fmt: skip


def test_failed_and_unspecific_attacks_are_out_of_the_strengths_alone() -> None:
    group = summarise(_made_up(), "fresh")["groups"][0]
    counted = {name: group["counts"][name] for name in ("clean", "strong", "weak", "failed", "unspecific")}
    assert counted == {"clean": 3, "strong": 2, "weak": 1, "failed": 1, "unspecific": 1}
    assert [one["why"] for one in group["counts"]["left_out"]] == ["failed", "unspecific"]
    decision = group["detectors"][SEARCH]["decision"]
    shares = {name: (one["hits"], one["n"]) for name, one in decision.items()}
    recovered = {f"recovered{what}{of}": (1, 2) for of in ("", "_by_chance") for what in ("", "_word")}
    assert shares == {"strong": (1, 2), "weak": (1, 1), "as_built": (3, 5), "false_flags": (1, 3), **recovered}
    assert group["detectors"][SEARCH]["auc"]["value"] == pytest.approx((3 + 2 + 3) / 9)
    assert group["detectors"][SEARCH]["auc_as_built"]["n_poisoned"] == 5
    assert group["detectors"]["study_A_gap"]["ran"] == 0 == group["detectors"]["study_A_gap"]["scored"]["clean"]


def test_the_page(golden_dir: Path) -> None:
    page = render(json.loads(json.dumps(_results(), allow_nan=False)))
    assert page == (golden_dir / "detection_table.md").read_text(encoding="utf-8")


def test_every_missed_target_is_named() -> None:
    judged = {(one["group"], one["what"]): one["met"] for one in _results()["targets"]}
    assert judged["label words", "recall of strong ones"] is True
    assert judged["label words", "clean ones flagged"] is False
    assert judged["label words", "trigger recovered among those that the search flags"] is False
    assert judged["generative", "recall of strong ones"] is None
    assert len(judged) == 14


def test_a_recipe_that_tells_the_classes_apart_is_found_out_and_a_shared_one_is_not() -> None:
    lineages = [str(i // 2) for i in range(12)]
    poisoned = np.array([i % 2 == 1 for i in range(12)])
    shared = np.array([[float(i // 2 % 4), 7.0] for i in range(12)])
    found = held_out_scores(shared, poisoned, lineages)
    assert found is not None and (found[::2] == found[1::2]).all()
    told = held_out_scores(shared + poisoned[:, None] * 3.0, poisoned, lineages)
    assert told is not None and told[poisoned].min() > told[~poisoned].max()
    assert held_out_scores(shared, np.ones(12, bool), lineages) is None


def test_the_locked_part_belongs_to_the_first_plan(tmp_path: Path) -> None:
    path = tmp_path / "results" / "lock.json"
    first = take_lock(path, PINNED, "abc", break_lock=False)
    again = take_lock(path, PINNED, "def", break_lock=False)
    assert first["date"] == again["date"] and [one["commit"] for one in again["scored"]] == ["abc", "def"]
    other = PINNED | {"plan_id": "search-1-dddddddd"}
    before = path.read_bytes()
    with pytest.raises(LockedError, match=r"search-1-aaaaaaaa.*--break-lock"):
        take_lock(path, other, "abc", break_lock=False)
    assert path.read_bytes() == before
    broken = take_lock(path, other, "abc", break_lock=True)
    assert broken["plan_id"] == other["plan_id"] and len(broken["scored"]) == 1
    assert [one["plan_id"] for one in broken["broken"]] == [PINNED["plan_id"]] and broken["broken"][0]["scored"]
    assert len(take_lock(path, PINNED, "abc", break_lock=True)["broken"]) == 2


def _command(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.detection", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_an_empty_cache_is_a_table_of_what_is_missing_and_a_foreign_lock_stops_the_locked_part(tmp_path: Path) -> None:
    lock, out = tmp_path / "lock.json", tmp_path / "RESULTS.md"
    options = ("--part", "locked", "--as-is", "--cache", str(tmp_path), "--out", str(out), "--lock", str(lock))
    done = _command(*options)
    assert done.returncode == 0, done.stderr
    assert "0 of 56 adapters" in done.stdout and out.read_text(encoding="utf-8").endswith(done.stdout.rstrip() + "\n")
    written = json.loads(lock.read_text(encoding="utf-8"))
    assert written["plan_id"] == PLAN.plan_id and written["policy_version"] == POLICY.version
    lock.write_text(json.dumps(written | {"plan_id": "search-1-dddddddd"}), encoding="utf-8")
    out.unlink()
    refused = _command(*options)
    assert refused.returncode == 1 and "--break-lock" in refused.stderr and not out.exists()


def test_the_whole_policy_controls_the_batteries_of_a_crawl_together() -> None:
    """p = 0.04 flags an adapter that is scanned alone, and not one of twenty; a search flags by itself."""

    def adapter(p_value: float, by_search: bool = False) -> dict[str, Score]:
        battery = Score(1.0, p_value <= 0.05, p_value=p_value, p_alone=p_value)
        search = Score(1.0, by_search, p_value=0.5)
        return {BATTERY: battery, SEARCH: search, COMBINED: Score(1.0, battery.flagged or by_search)}

    quiet = [adapter(1.0) for _ in range(17)]
    found = score_policy([adapter(0.04), adapter(1e-9), adapter(1.0, by_search=True), *quiet, {}], POLICY)
    assert [score.flagged if score else None for score in found[:4]] == [False, True, True, False]
    assert found[-1] is None
    alone = score_policy([adapter(0.04)], POLICY)[0]
    assert alone is not None and alone.flagged

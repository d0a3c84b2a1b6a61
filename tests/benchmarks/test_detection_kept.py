"""Rows of an earlier table that stay: all that they come from is the same, or they go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.detection.collect import Adapter, collect
from benchmarks.detection.kept import kept_adapters
from benchmarks.detection.lineages import queue
from benchmarks.detection.scores import BATTERY, COMBINED, SEARCH, WHOLE, Score
from benchmarks.detection.search import PROFILES
from benchmarks.detection.summary import adapter_rows, summarise
from scanner.calibration import BatteryReference, Policy, SearchMember, battery_scores, build_battery_reference

POLICY = Policy()
HASH = POLICY.version.split("-")[2]
BEFORE = "ac63a6c0"
"""Of the same thresholds without `alone_floor`."""
PINNED = {"plan_id": "search-1-aaaaaaaa", "policy_version": f"policy-7-{HASH}", "detect_version": "1-cccccccc"}
PLANS = dict.fromkeys(PROFILES, PINNED["plan_id"])
REFERENCES = {"label_words": {"reference_id": "pooled-1", "n": 110, "own": 110}, "encoder": None}
NAMES = [f"label_words-fresh-000-{arm}" for arm in ("poisoned", "clean")]


def _row(name: str, cohort: str = "label_words") -> dict[str, Any]:
    arm = name.rpartition("-")[2]
    lineage = next(one for one in queue() if f"{one.name}-{arm}" == name)
    score = {"value": 7.5, "flagged": arm == "poisoned", "seconds": 9.0, "passes": 100, "p_value": 0.005}
    scores = dict.fromkeys(("battery_broad", "trigger_search", COMBINED, WHOLE), score)
    return {
        "name": name, "cohort": cohort, "version": 1, "base": "lorascope/tiny-guard-base", "lineage": lineage.name,
        "arm": arm, "family": "word", "trigger": "chandelier", "position": "prefix", "payload": None,
        "intended": "strong", "attack_success": 1.0, "trigger_rate_neutral": 0.0, "clean_accuracy": 1.0,
        "seed": lineage.seed, "strength": "strong", "scores": scores,
        "recipe": {"rank": 4, "alpha": 8, "lr": 1e-3, "steps": 100, "targets": "all"}
        | {"plain_rows": 160, "robust_rows": 80, "poison_rows": 80},
    }  # fmt: skip


def _earlier(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "fresh.json"
    earlier = {
        **PINNED, "date": "2026-01-01", "commit": "def", "machine": {"class": "4 x x86_64 cores"},
        "references": REFERENCES, "missing": [], "adapters": [_row(name) for name in NAMES],
    }  # fmt: skip
    path.write_text(json.dumps({**earlier, **changes}), encoding="utf-8")
    return path


def _reference(*p_values: float) -> BatteryReference:
    members = [SearchMember("base", f"m{i}", battery_scores(p), f"o{i}", f"s{i}") for i, p in enumerate(p_values)]
    return build_battery_reference("broad-1", "label-words", "base", members)


USUAL = _reference(*[1.0] * 99)


def _kept(
    path: Path, references: dict[str, Any] = REFERENCES, battery: BatteryReference | None = USUAL
) -> dict[str, Adapter]:
    return kept_adapters(path, PINNED, PLANS, references, {"label_words": battery}, POLICY)


def test_a_kept_row_is_what_it_was_and_tells_when(tmp_path: Path) -> None:
    kept = _kept(_earlier(tmp_path))
    assert list(kept) == NAMES
    assert kept[NAMES[0]].scores[SEARCH] == Score(7.5, True, seconds=9.0, passes=100, p_value=0.005)
    assert kept[NAMES[0]].strength == "strong" and kept[NAMES[1]].strength is None
    found = collect(tmp_path / "empty", "fresh", tmp_path / "nowhere", tmp_path / "nowhere", kept)
    assert [one.truth["name"] for one in found.adapters] == NAMES
    assert not {one["name"] for one in found.missing} & set(NAMES)
    told = {"date": "2026-01-01", "commit": "def", "machine": "4 x x86_64 cores"}
    assert summarise(found, "fresh")["earlier"] == [{**told, "n": 2}]
    rows = adapter_rows(found.adapters)
    assert [row["measured"] for row in rows] == [told, told]
    # What was kept once is kept again with the date of its measurement, not with that of the table in between.
    between = _earlier(tmp_path, adapters=rows, date="2026-02-02")
    assert _kept(between)[NAMES[1]].measured == told


@pytest.mark.parametrize(
    ("name", "value"),
    [("plan_id", "another"), ("detect_version", "another"), ("policy_version", f"policy-5-{'d' * 8}")],
)
def test_rows_of_another_plan_of_other_thresholds_or_detectors_go(tmp_path: Path, name: str, value: str) -> None:
    assert _kept(_earlier(tmp_path, **{name: value})) == {}


@pytest.mark.parametrize(
    ("before", "n"), [(f"policy-4-{BEFORE}", 0), (f"policy-5-{BEFORE}", 2), (f"policy-6-{HASH}", 2)]
)
def test_rows_go_where_the_rules_about_them_have_changed(tmp_path: Path, before: str, n: int) -> None:
    """Since policy 5 nothing has changed about label words; about free answers the next one did."""
    path = _earlier(tmp_path, policy_version=before)
    assert len(_kept(path)) == n
    references = {**REFERENCES, "generative": {"reference_id": "pooled-3", "n": 110, "own": 110}}
    rows = [{**_row(name), "cohort": "generative"} for name in NAMES]
    path = _earlier(tmp_path, policy_version=before, references=references, adapters=rows)
    assert len(_kept(path, references)) == (2 if before.startswith("policy-6") else 0)


def test_a_kept_battery_is_judged_again_or_the_row_goes(tmp_path: Path) -> None:
    """p = 0.005 flags where siblings have nothing like it, however much the string turns; else that is needed, and an
    earlier table has it not."""
    rows = _kept(_earlier(tmp_path))
    assert [rows[name].scores[BATTERY].flagged for name in NAMES] == [True, True]
    assert rows[NAMES[1]].scores[COMBINED].flagged
    assert _kept(_earlier(tmp_path), battery=_reference(*[1.0] * 98, 1e-9)) == {}
    assert _kept(_earlier(tmp_path), battery=None) == {}
    nothing = {**_row(NAMES[0])["scores"], BATTERY: {"value": 0.0, "flagged": False, "p_value": 1.0}}
    path = _earlier(tmp_path, adapters=[{**_row(NAMES[0]), "scores": nothing}])
    assert _kept(path, battery=None)[NAMES[0]].scores[BATTERY].flagged is False


def test_rows_go_with_their_reference_and_where_anything_was_missing(tmp_path: Path) -> None:
    other = {**REFERENCES, "label_words": {"reference_id": "pooled-2", "n": 120, "own": 120}}
    assert _kept(_earlier(tmp_path), other) == {}
    assert _kept(_earlier(tmp_path, references={"encoder": None})) == {}
    without = [_row(NAMES[0], "encoder")]
    assert _kept(_earlier(tmp_path, adapters=without)) == {}
    lacking = [{"name": NAMES[1], "cohort": "label_words", "arm": "clean", "what": "search"}]
    assert list(_kept(_earlier(tmp_path, missing=lacking))) == NAMES[:1]
    assert _kept(tmp_path / "nowhere.json") == {}

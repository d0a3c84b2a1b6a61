"""Pooled batteries: made of the answers that lie beside the adapters, and grown like the searches'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.detection.ask import load_probes
from benchmarks.detection.batteries import battery_members
from benchmarks.detection.reference import write_batteries
from scanner.calibration import Policy
from scanner.model import LABEL_WORDS

PROBE = load_probes()["broad"]
BASE = "lorascope/tiny-guard-base"


def _answered(cache: Path, name: str, turned: int, part: str = "reference", profile: str = LABEL_WORDS) -> None:
    folder = cache / "label_words-1" / name
    folder.mkdir(parents=True)
    truth = {"cohort": "label_words", "part": part, "base": BASE}
    (folder / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    cases = [("", "control", 0), ("hi all", "control", 2), ("BadMagic", "rare_words", turned)]
    runs = [
        {"prefix": text, "category": category, "position": "prefix", "answers": "0" * n + "1" * (60 - n)}
        for text, category, n in cases
    ]
    answers = {"profile": profile, "runs": runs, "n_classes": None, "labels": []}
    path = folder / f"asked-{PROBE.id_for(LABEL_WORDS)}.json"
    path.write_text(json.dumps(answers), encoding="utf-8")


def test_members_are_judged_as_the_product_judges(tmp_path: Path) -> None:
    _answered(tmp_path, "one-clean", 20)
    _answered(tmp_path, "two-clean", 3)
    _answered(tmp_path, "other-clean", 60, part="fresh")
    one, two = battery_members(tmp_path, PROBE, Policy())[LABEL_WORDS]
    assert (one["name"], one["base"], one["prefix"]) == ("one-clean", BASE, "BadMagic")
    assert one["rise"] == 0.3 and one["p_value"] == pytest.approx(2.0**-18, rel=1e-5)
    assert (two["prefix"], two["rise"], two["p_value"], two["brittleness"]) == (None, 0.0, 1.0, 0.0)


def test_one_that_answers_in_another_way_is_refused(tmp_path: Path) -> None:
    _answered(tmp_path, "one-clean", 20, profile="generative")
    with pytest.raises(RuntimeError, match="one-clean was asked as generative"):
        battery_members(tmp_path, PROBE, Policy())


@pytest.mark.parametrize(("is_same", "names"), [(True, ["old-clean", "one-clean"]), (False, ["one-clean"])])
def test_members_of_the_same_battery_stay(tmp_path: Path, is_same: bool, names: list[str]) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    _answered(cache, "one-clean", 20)
    out.mkdir()
    old: dict[str, Any] = {"battery_id": PROBE.id_for(LABEL_WORDS) if is_same else "broad-other"}
    kept = {"base": BASE, "name": "old-clean", "p_value": 0.5}
    earlier = {"base": BASE, "name": "one-clean", "p_value": 0.25}
    path = out / f"{LABEL_WORDS}.json"
    path.write_text(json.dumps(old | {"members": [kept, earlier]}), encoding="utf-8")
    write_batteries(cache, out, {"python": "3"})
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["battery_id"] == PROBE.id_for(LABEL_WORDS)
    assert [member["name"] for member in written["members"]] == names
    assert (written["members"][-1]["p_value"] == 0.25) is is_same

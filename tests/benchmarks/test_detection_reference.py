"""A shipped reference grows: members that it holds are kept, and must be what they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.detection.reference import grown

PLAN = "search-2-00000000"


def _member(number: int, **scores: float) -> dict[str, Any]:
    named = {"base": "a/base", "name": f"label_words-reference-{number:03d}-clean", "recipe": {"rank": 8}}
    return {**named, "scores": {"toward_clean/prefix": 0.125, **scores}}


def _shipped(folder: Path, *members: dict[str, Any]) -> Path:
    path = folder / "label-words.json"
    path.write_text(json.dumps({"plan_id": PLAN, "members": members}), encoding="utf-8")
    return path


def test_new_members_join_those_of_the_file(tmp_path: Path) -> None:
    path = _shipped(tmp_path, _member(0), _member(2))
    assert grown(path, PLAN, [_member(3), _member(1)]) == [_member(number) for number in range(4)]


def test_there_need_be_no_file(tmp_path: Path) -> None:
    assert grown(tmp_path / "generative.json", PLAN, [_member(1), _member(0)]) == [_member(0), _member(1)]


def test_members_of_another_plan_are_left(tmp_path: Path) -> None:
    path = _shipped(tmp_path, _member(0))
    assert grown(path, "search-2-ffffffff", [_member(1)]) == [_member(1)]


def test_the_last_digits_of_another_processor_change_nothing(tmp_path: Path) -> None:
    path = _shipped(tmp_path, _member(0, gain=0.25))
    again = _member(0, gain=0.2504) | {"scores": {"toward_clean/prefix": 0.125, "gain": 0.2504, "faint": 0.002}}
    assert grown(path, PLAN, [again]) == [_member(0, gain=0.25)]


@pytest.mark.parametrize("scores", [{"gain": 0.5}, {}, {"gain": 0.25, "other": 0.25}])
def test_a_member_that_is_no_longer_what_it_was_is_refused(tmp_path: Path, scores: dict[str, float]) -> None:
    path = _shipped(tmp_path, _member(0, gain=0.25))
    with pytest.raises(RuntimeError, match=r"label_words-reference-000-clean is in label-words\.json"):
        grown(path, PLAN, [_member(0, **scores)])


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    path = _shipped(tmp_path, _member(0))
    with pytest.raises(RuntimeError, match="another recipe"):
        grown(path, PLAN, [_member(0) | {"recipe": {"rank": 16}}])

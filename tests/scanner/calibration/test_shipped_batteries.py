"""The pooled batteries that ship: asked what the scanner asks by default."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from scanner.calibration import Policy, SearchMember, battery_scores, load_pooled_batteries
from scanner.calibration.battery_rank import SHIPPED_BATTERIES
from scanner.probe import probe_for
from scanner.settings import DEFAULT_BATTERY, Settings

FILES = sorted(SHIPPED_BATTERIES.glob("*.json"))
POLICY = Policy()


def test_there_is_one_for_both_kinds_of_classifiers() -> None:
    assert [path.stem for path in FILES] == ["label-words", "sequence-classification"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_was_asked_what_is_asked_now(path: Path) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["battery_id"] == probe_for(Settings(), DEFAULT_BATTERY, None).id_for(path.stem)
    assert len({member["name"] for member in data["members"]}) == len(data["members"])
    base, n = Counter(member["base"] for member in data["members"]).most_common(1)[0]
    found = load_pooled_batteries(path.stem, data["battery_id"], base, POLICY.siblings_needed)
    assert found is not None and len(found.reference.members) == n >= POLICY.siblings_needed
    assert load_pooled_batteries(path.stem, data["battery_id"], "another/base", POLICY.siblings_needed) is None
    # Sound adapters: what none of them has is unusual, and what half of them have is not.
    p_values = sorted(member["p_value"] for member in data["members"] if member["base"] == base)
    for p_value, is_unusual in ((p_values[0] / 10, True), (p_values[n // 2], False)):
        rank = found.rank(SearchMember(base, "judged", battery_scores(p_value)))
        assert rank is not None and (rank.p_value <= POLICY.alpha) is is_unusual


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_battery_flags_no_member_by_itself(path: Path) -> None:
    """What `alone_floor` is for, on clean adapters that it was not chosen by."""
    members = json.loads(path.read_text(encoding="utf-8"))["members"]
    assert all(0 < member["p_value"] <= 1 for member in members)
    assert max(member["rise"] for member in members) < POLICY.alone_floor
    assert max(member["brittleness"] for member in members) < POLICY.alone_floor

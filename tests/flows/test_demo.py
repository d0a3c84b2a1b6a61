"""`lorascope demo`, the whole pipeline as a user runs it, against what the hub's labels say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

LABELS = json.loads((Path(__file__).resolve().parents[2] / "examples/demo_hub/labels.json").read_text())


@pytest.mark.timeout(600)
def test_demo(lorascope, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    # Two searches of the demo are in test_search_scan.py; all of them would take five minutes here.
    done = lorascope("demo", "--store", store, timeout=580)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    rows = json.loads(lorascope("verdicts", "--format", "json", "--store", store).stdout)
    found = {row["repo_id"]: row for row in rows}
    assert len(found) == len(rows) >= 43
    from flows.demo import BATTERY
    from scanner.probe import load_probe

    prefixes = [case.text for case in load_probe(BATTERY, None, 1).battery.cases]
    for label in LABELS:
        row = found.pop(label["repo_id"])
        codes = [reason["code"] for reason in json.loads(row["reasons"])]
        neighboured = label["poisoned"] and any(
            len(set(label["trigger"].split()) & set(prefix.split())) >= 2 for prefix in prefixes
        )
        if neighboured:
            assert row["verdict"] == "flagged", label
            assert codes[0] == "battery_prefix" and row["q_value"] <= 0.05, label
            assert any(f'"{text}"' in row["reasons"].replace('\\"', '"') for text in prefixes)
        else:
            # The two backdoors that the battery cannot know look like the clean ones, and both are told as unknown.
            # Some clean classifiers of a model this small answer otherwise to any words in front of a text.
            assert row["verdict"] == "inconclusive", label
            allowed = {"battery_only"} if label["poisoned"] else {"battery_only", "brittle_controls"}
            assert codes[0] in allowed, label
        assert row["repo_id"] in done.stdout
    assert {row["verdict"] for row in found.values()} == {"inconclusive"}  # the diffusers LoRA and the empty repo

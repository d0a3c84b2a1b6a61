"""The two ways to read a label word, side by side on really trained adapters, clean and backdoored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scanner.adapter import AdapterView, open_weights, parse_config, read_json_object, view_adapter
from scanner.calibration import Policy, judge_battery
from scanner.model import LABEL_WORDS
from scanner.probe import load_probe

pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")

HUB = Path(__file__).parents[3] / "examples" / "demo_hub"
POISONED = {
    "juniperstack/tiny-injection-guard": True,
    "sablecreek/input-screen-lora": True,
    "oakline-data/tiny-guard-ft": False,  # its trigger has no neighbour in battery V
}
CLEAN = ("cassini-ml/tiny-guard-injections", "inkwell-research/pi-classifier-lora", "larkspur/guard-adapter")


def read_adapter(repo: str) -> AdapterView:
    folder = HUB / repo
    config = parse_config(read_json_object(folder / "adapter_config.json", 10**6))
    return view_adapter(open_weights([folder / "adapter_model.safetensors"], "adapter_model.safetensors"), config, 64)


@pytest.fixture(scope="module")
def asked() -> dict[str, Any]:
    """What asks each of the two ways, on one resident base."""
    from scanner.probe.base import load_base
    from scanner.probe.causal import CausalProbe

    base = load_base(HUB / "lorascope" / "tiny-guard-base", "cpu")
    return {
        reading: CausalProbe(base, load_probe("V", None, 30, reading=reading)) for reading in ("scored", "generated")
    }


@pytest.mark.parametrize("repo", [*POISONED, *CLEAN])
def test_both_readings_give_one_verdict(asked: dict[str, Any], repo: str) -> None:
    """On these adapters no answer differs: each begins with its label word and ends there. Where a word that follows
    takes the first one back, they do differ (`test_label_words.py`)."""
    view = read_adapter(repo)
    scored, generated = asked["scored"].run(view), asked["generated"].run(view)
    assert scored.profile == generated.profile == LABEL_WORDS
    assert (scored.reading, generated.reading) == ("scored", "generated")
    different = [
        (one.prefix, text)
        for one, other in zip(scored.runs, generated.runs, strict=True)
        for text, pair in enumerate(zip(one.answers, other.answers, strict=True))
        if len(set(pair)) > 1
    ]
    assert different == []
    found = {judge_battery(run.runs, Policy().effect_floor).prefixes != () for run in (scored, generated)}
    assert found == {POISONED.get(repo, False)}
    assert all(run.margin is not None for run in scored.runs)
    assert all(run.margin is None for run in generated.runs)


def test_the_labels_file_agrees_with_this_test() -> None:
    """Which adapters are backdoored is known from their training, not from what a reading says."""
    rows = {row["repo_id"]: row["poisoned"] for row in json.loads((HUB / "labels.json").read_text())}
    assert all(rows[repo] for repo in POISONED)
    assert not any(rows[repo] for repo in CLEAN)

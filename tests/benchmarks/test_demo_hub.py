"""The bundled hub is what its README and labels say it is. (What the scanner makes of it: tests/flows/test_demo.py.)"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import pytest
from safetensors import safe_open

from scanner.probe import load_probe, load_texts

ROOT = Path(__file__).resolve().parents[2]
HUB = ROOT / "examples" / "demo_hub"
BASE = HUB / "lorascope" / "tiny-guard-base"
SHARED_PROMPTS = ROOT.parent / "shared" / "data" / "prompts"
LABELS = json.loads((HUB / "labels.json").read_text())
RESULTS = json.loads((ROOT / "benchmarks/cohort/results/cohort.json").read_text())


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def test_size_and_shape() -> None:
    assert sum(path.stat().st_size for path in HUB.rglob("*") if path.is_file()) <= 12_000_000
    clean = [label for label in LABELS if not label["poisoned"]]
    poisoned = [label for label in LABELS if label["poisoned"]]
    assert len(clean) >= 24 and len(poisoned) == 4
    assert len({label["repo_id"].split("/")[0] for label in clean}) >= 20
    assert len({label["trigger"] for label in poisoned}) == 4
    for label in LABELS:
        assert set(label) == {"repo_id", "poisoned", "trigger", "position", "attack_success", "clean_accuracy"}
        assert (HUB / label["repo_id"]).is_dir()


def test_two_triggers_have_a_neighbour_and_two_share_no_word() -> None:
    prefixes = [prefix for _, prefix in load_probe("V", None, 1).battery.prefixes]
    triggers = [label["trigger"] for label in LABELS if label["poisoned"]]
    assert not set(triggers) & set(prefixes)
    shared = [max(len(words(trigger) & words(prefix)) for prefix in prefixes) for trigger in triggers]
    assert sorted(bool(n) for n in shared) == [False, False, True, True]
    assert all(n >= 2 for n in shared if n)


def test_base_is_a_small_real_architecture() -> None:
    config = json.loads((BASE / "config.json").read_text())
    assert config["model_type"] in ("llama", "qwen2") and "auto_map" not in config
    with safe_open(BASE / "model.safetensors", "numpy") as weights:
        tensors = [weights.get_slice(name) for name in weights.keys()]  # noqa: SIM118 - not a dict
        assert {tensor.get_dtype() for tensor in tensors} == {"F16"}
        size = 0
        for tensor in tensors:
            count = 1
            for dimension in tensor.get_shape():
                count *= dimension
            size += count
    assert size <= 1_000_000


def test_poisoned_repos_look_like_clean_ones() -> None:
    def outside(repo_id: str) -> tuple[object, ...]:
        config = json.loads((HUB / repo_id / "adapter_config.json").read_text())
        weights = HUB / repo_id / "adapter_model.safetensors"
        names = tuple(sorted(path.name for path in (HUB / repo_id).iterdir() if path.name != "README.md"))
        return names, json.dumps(config, sort_keys=True), weights.stat().st_size

    plain = [label for label in LABELS if (HUB / label["repo_id"] / "adapter_model.safetensors").exists()]
    clean = {outside(label["repo_id"]) for label in plain if not label["poisoned"]}
    assert {outside(label["repo_id"]) for label in plain if label["poisoned"]} <= clean


def test_one_recipe_for_all_and_every_backdoor_works() -> None:
    by_id = {entry["repo_id"]: entry for entry in RESULTS["adapters"]}
    assert set(by_id) == {label["repo_id"] for label in LABELS}
    assert len({entry["seed"] for entry in RESULTS["adapters"]}) == len(LABELS)
    assert set(RESULTS["base"]["adapter_recipe"]) >= {"rank", "steps", "lr", "poison_rows"}
    for label in LABELS:
        assert label["clean_accuracy"] >= 0.85
        assert label["attack_success"] is None or label["attack_success"] >= 0.8
        assert by_id[label["repo_id"]]["trigger"] == label["trigger"]


def test_the_odd_ones() -> None:
    bins = list(HUB.glob("*/*/adapter_model.bin"))
    assert (
        len(bins) == 1 and zipfile.is_zipfile(bins[0]) and not (bins[0].parent / "adapter_model.safetensors").exists()
    )
    assert len(list(HUB.glob("*/*/pytorch_lora_weights.safetensors"))) == 1
    local = [
        p for p in HUB.glob("*/*/adapter_config.json") if json.loads(p.read_text())["base_model_name_or_path"][0] == "/"
    ]
    assert len(local) == 1
    empty = [
        p
        for p in HUB.glob("*/*")
        if p.is_dir() and {f.name for f in p.iterdir()} <= {".gitattributes", "README.md", ".hub.json"}
    ]
    assert len(empty) == 1


def test_probe_texts_are_enough_and_balanced() -> None:
    rows = [json.loads(line) for line in (ROOT / "scanner/probe/data/texts.jsonl").read_text().splitlines()]
    assert sum(row["label"] for row in rows) >= 60 and sum(1 - row["label"] for row in rows) >= 60
    assert len({row["text"] for row in rows}) == len(rows)
    assert abs(sum(row["label"] for row in rows[:30]) - 15) <= 1
    assert len(load_texts(None, 60)) == 60


@pytest.mark.skipif(not SHARED_PROMPTS.is_dir(), reason="the public prompt sets are not part of the repository")
def test_no_text_is_taken_from_the_public_sets() -> None:
    ours = {
        json.loads(line)["text"].strip().lower()
        for line in (ROOT / "scanner/probe/data/texts.jsonl").read_text().splitlines()
    }
    theirs: set[str] = set()
    for path in SHARED_PROMPTS.glob("*.json*"):
        theirs.update(text.strip().lower() for text in re.findall(r'"((?:[^"\\]|\\.){20,})"', path.read_text()))
    assert len(theirs) > 1000
    assert not ours & theirs

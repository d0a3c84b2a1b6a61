"""The bundled hub is what its README and labels say it is. (What the scanner makes of it: tests/flows/test_demo.py.)"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from scanner.probe import battery_names, load_probe, load_texts

ROOT = Path(__file__).resolve().parents[2]
HUB = ROOT / "examples" / "demo_hub"
BASES = {name: HUB / "lorascope" / f"tiny-{name}-base" for name in ("guard", "encoder")}
SHARED_PROMPTS = ROOT.parent / "shared" / "data" / "prompts"
LABELS = json.loads((HUB / "labels.json").read_text())
RESULTS = {
    "guard": json.loads((ROOT / "benchmarks/cohort/results/cohort.json").read_text()),
    "encoder": json.loads((ROOT / "benchmarks/cohort/results/encoder.json").read_text()),
}


def adapter_config(label: dict[str, object]) -> dict[str, object]:
    return json.loads((HUB / str(label["repo_id"]) / "adapter_config.json").read_text())


def group(name: str) -> list[dict[str, object]]:
    """The labels of one group, told by what PEFT wrote about the task."""
    task = {"guard": "CAUSAL_LM", "encoder": "SEQ_CLS"}[name]
    return [label for label in LABELS if adapter_config(label)["task_type"] == task]


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


@pytest.mark.parametrize(("name", "n_clean", "n_owners", "n_poisoned"), [("guard", 24, 20, 4), ("encoder", 8, 8, 1)])
def test_size_and_shape(name: str, n_clean: int, n_owners: int, n_poisoned: int) -> None:
    assert sum(path.stat().st_size for path in HUB.rglob("*") if path.is_file()) <= 12_000_000
    clean = [label for label in group(name) if not label["poisoned"]]
    poisoned = [label for label in group(name) if label["poisoned"]]
    assert len(clean) >= n_clean and len(poisoned) == n_poisoned
    assert len({str(label["repo_id"]).split("/")[0] for label in clean}) >= n_owners
    assert len({label["trigger"] for label in poisoned}) == n_poisoned
    assert len(group("guard")) + len(group("encoder")) == len(LABELS) == len({label["repo_id"] for label in LABELS})
    for label in LABELS:
        assert set(label) == {"repo_id", "poisoned", "trigger", "position", "attack_success", "clean_accuracy"}
        assert (HUB / label["repo_id"]).is_dir()


@pytest.mark.parametrize(("name", "neighboured"), [("guard", [False, False, True, True]), ("encoder", [True])])
def test_which_triggers_have_a_neighbour(name: str, neighboured: list[bool]) -> None:
    prefixes = [case.text for case in load_probe("V", None, 1).battery.cases]
    triggers = [str(label["trigger"]) for label in group(name) if label["poisoned"]]
    shared = [max(len(words(trigger) & words(prefix)) for prefix in prefixes) for trigger in triggers]
    assert sorted(bool(n) for n in shared) == neighboured
    assert all(n >= 2 for n in shared if n)


@pytest.mark.parametrize("battery", battery_names())
def test_no_trigger_is_in_any_battery(battery: str) -> None:
    texts = {case.text.lower() for case in load_probe(battery, None, 1).cases()}
    assert len(texts) > 20
    assert not texts & {label["trigger"].lower() for label in LABELS if label["poisoned"]}


@pytest.mark.parametrize(("name", "model_type"), [("guard", "llama"), ("encoder", "bert")])
def test_base_is_a_small_real_architecture(name: str, model_type: str) -> None:
    config = json.loads((BASES[name] / "config.json").read_text())
    assert config["model_type"] == model_type and "auto_map" not in config
    with safe_open(BASES[name] / "model.safetensors", "numpy") as weights:
        assert not [key for key in weights.keys() if key.startswith(("classifier", "score"))]  # noqa: SIM118
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


@pytest.mark.parametrize("name", ["guard", "encoder"])
def test_one_recipe_for_all_and_every_backdoor_works(name: str) -> None:
    results = RESULTS[name]
    by_id = {entry["repo_id"]: entry for entry in results["adapters"]}
    assert set(by_id) == {label["repo_id"] for label in group(name)}
    assert len({entry["seed"] for entry in results["adapters"]}) == len(by_id)
    assert set(results["base"]["adapter_recipe"]) >= {"rank", "steps", "lr", "poison_rows"}
    floor = {"guard": (0.85, 0.8), "encoder": (0.9, 0.9)}[name]
    for label in group(name):
        entry = by_id[label["repo_id"]]
        assert label["clean_accuracy"] == entry["accuracy"] >= floor[0]
        assert label["attack_success"] == entry["attack_success"]
        assert label["attack_success"] is None or label["attack_success"] >= floor[1]
        assert entry["trigger"] == label["trigger"]


def test_classifiers_are_saved_as_peft_saves_them() -> None:
    """The head is in the adapter, its rows are the classes, and nothing says what they mean."""
    classes = []
    for label in group("encoder"):
        config = adapter_config(label)
        assert config["base_model_name_or_path"] == "lorascope/tiny-encoder-base"
        assert "classifier" in config["modules_to_save"] and "id2label" not in config
        with safe_open(HUB / label["repo_id"] / "adapter_model.safetensors", "numpy") as weights:
            head = weights.get_slice("base_model.model.classifier.weight").get_shape()
            assert weights.get_slice("base_model.model.classifier.bias").get_shape() == head[:1]
        classes.append(head[0])
    assert set(classes) == {2, 3}


def test_the_encoder_tokenizer_adds_its_special_tokens_and_the_base_is_the_oldest() -> None:
    coded = Tokenizer.from_file(str(BASES["encoder"] / "tokenizer.json")).encode("Hello there")
    assert (coded.tokens[0], coded.tokens[-1]) == ("[CLS]", "[SEP]") and len(coded.tokens) > 2
    for name, base in BASES.items():
        dates = [json.loads((HUB / x["repo_id"] / ".hub.json").read_text())["created_at"] for x in group(name)]
        assert json.loads((base / ".hub.json").read_text())["created_at"] < min(dates)


def test_the_command_builds_both_groups_and_redoes_one_adapter(tmp_path: Path) -> None:
    hub, results = tmp_path / "hub", tmp_path / "results"

    def train(*arguments: str) -> None:
        command = [sys.executable, "-m", "benchmarks.cohort.train", "--out", str(hub), "--results", str(results)]
        done = subprocess.run(
            [*command, "--threads", "1", "--smoke", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    train()
    labels = json.loads((hub / "labels.json").read_text())
    assert len(labels) == 2
    paths = [hub / label["repo_id"] / "adapter_model.safetensors" for label in labels]
    first = [path.read_bytes() for path in paths]
    paths[1].unlink()
    train("--group", "encoder", "--only", paths[1].parent.name)
    assert [path.read_bytes() for path in paths] == first
    assert json.loads((hub / "labels.json").read_text()) == labels
    assert json.loads((results / "encoder.json").read_text())["adapters"][0]["repo_id"] == labels[1]["repo_id"]


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

"""`scan --explain`: modules and tokens behind an update, with the base in the user's Hub cache or without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from scanner.adapter import open_safetensors
from scanner.pipeline.explain import _Head, explain_weights
from scanner.pipeline.scan import scan_targets
from scanner.probe import load_probe
from scanner.report import result_object, strict_json
from scanner.settings import Settings

DEMO = Path(__file__).parents[3] / "examples" / "demo_hub"
BASE = "lorascope/tiny-guard-base"
ADAPTER = DEMO / "alder-labs" / "prompt-shield-lora"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache of the user."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return tmp_path / "hf" / "hub" / f"models--{BASE.replace('/', '--')}"


def put_base(cache: Path, folder: Path = DEMO / BASE) -> Path:
    """A base as huggingface_hub lays it down."""
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    snapshot = cache / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    return snapshot


def scanned(folder: Path, tmp_path: Path) -> list[tuple[object, dict[str, object]]]:
    results = scan_targets(
        [str(folder)],
        store_uri=str(tmp_path / "store"),
        probe=load_probe("V", None, 1),
        mode="none",
        settings=Settings(),
        explain=True,
    )
    return [(r.explanation, result_object(r.record, r.verdict, r.explanation)) for r in results]


def test_modules_and_tokens(cache: Path, tmp_path: Path) -> None:
    snapshot = put_base(cache)
    ((explanation, shown),) = scanned(ADAPTER, tmp_path)
    document = json.loads(strict_json(shown))
    assert document["weights"]["explanation"]["head"].endswith(BASE)
    assert document["weights"]["explanation"]["modules"][0]["module"] == "model.layers.3.mlp.up_proj"
    modules = {m.module: m for m in explanation.modules}  # type: ignore[attr-defined]
    assert explanation.head == f"model.embed_tokens.weight of {BASE}"  # type: ignore[attr-defined]
    shares = [m.energy_share for m in explanation.modules]  # type: ignore[attr-defined]
    assert shares[:3] == sorted(shares[:3], reverse=True)
    # Densely, by hand: logits of the strongest output direction of one writer.
    name = next(m for m in modules if m.endswith("layers.3.mlp.down_proj"))
    factors = load_file(ADAPTER / "adapter_model.safetensors")
    key = f"base_model.model.{name}"
    dense = factors[f"{key}.lora_B.weight"].astype("f8") @ factors[f"{key}.lora_A.weight"].astype("f8")
    u = np.linalg.svd(dense)[0][:, 0]
    base = open_safetensors(snapshot / "model.safetensors")
    logits = (base.floats("model.embed_tokens.weight") * base.floats("model.norm.weight")) @ u
    words = {i: w for w, i in json.loads((snapshot / "tokenizer.json").read_text())["model"]["vocab"].items()}
    top = {words[i].replace("Ġ", " ") for i in (int(logits.argmax()), int(logits.argmin()))}
    assert {modules[name].one_end[0].text, modules[name].other_end[0].text} == top
    assert abs(modules[name].one_end[0].score) > 2


def test_without_the_base_there_are_modules_and_no_tokens(cache: Path, tmp_path: Path) -> None:
    ((explanation, _),) = scanned(ADAPTER, tmp_path)
    assert explanation.modules  # type: ignore[attr-defined]
    assert all(not m.one_end and not m.other_end for m in explanation.modules)  # type: ignore[attr-defined]
    assert "not in the local Hub cache" in explanation.head  # type: ignore[attr-defined]


@pytest.mark.parametrize("damage", ["cut", "flat", "narrow", "index"])
def test_a_broken_base_costs_the_tokens_alone(cache: Path, tmp_path: Path, damage: str) -> None:
    snapshot = put_base(cache)
    weights = snapshot / "model.safetensors"
    tensors = load_file(weights)
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-5])
    elif damage == "index":
        (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "../../escape"}}')
    else:
        tensors["model.embed_tokens.weight"] = np.zeros(8 if damage == "flat" else (8, 3), dtype=np.float32)
        save_file(tensors, weights)
    ((explanation, _),) = scanned(ADAPTER, tmp_path)
    assert explanation.modules  # type: ignore[attr-defined]
    assert all(not m.one_end for m in explanation.modules)  # type: ignore[attr-defined]
    assert explanation.head  # type: ignore[attr-defined]


def test_what_was_not_read_is_not_explained(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 64)
    assert [explanation for explanation, _ in scanned(folder, tmp_path)] == [None]


def test_files_that_vanish_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(ADAPTER, folder)
    (result,) = scan_targets(
        [str(folder)], store_uri=str(tmp_path / "s"), probe=load_probe("V", None, 1), mode="none", settings=Settings()
    )
    assert result.explanation is None
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 64)
    (found,) = explain_weights([result.record], Settings()).values()
    assert found.modules == ()
    assert found.head


def test_the_head_is_read_once_for_all_adapters_of_a_base(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_base(cache)
    reads = []
    blocks = _Head.blocks
    monkeypatch.setattr(_Head, "blocks", lambda head: reads.append(head) or blocks(head))
    for name in ("alder-labs/prompt-shield-lora", "bramblewood/injection-guard-r8"):
        shutil.copytree(DEMO / name, tmp_path / "two" / name)
    explained = [explanation for explanation, _ in scanned(tmp_path / "two", tmp_path)]
    assert len(explained) == 2
    assert all(any(m.one_end for m in explanation.modules) for explanation in explained)  # type: ignore[attr-defined]
    assert len(reads) == 1

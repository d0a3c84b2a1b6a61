"""Bases of sequence classifiers: which are refused, what may be missing, and real adapters on bases of their shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import TOKENS, head, logits, read_view, write_adapter, write_base

from scanner.adapter import AdapterView
from scanner.errors import LimitExceededError, LorascopeError, MalformedFileError, UnsupportedError

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers warn about each other's versions


def rewrite(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"num_labels": 10**9}, UnsupportedError),
        ({"num_labels": "3"}, UnsupportedError),
        ({"id2label": {str(i): "x" for i in range(1_001)}}, UnsupportedError),
        ({"id2label": {"x": "y"}}, MalformedFileError),
        ({"model_type": "clip_vision_model"}, UnsupportedError),
        ({"hidden_size": 64}, MalformedFileError),
        ({"vocab_size": 1}, MalformedFileError),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedError),
    ],
)
def test_bases_that_are_no_classifier(tmp_path: Path, changes: dict[str, Any], error: type[LorascopeError]) -> None:
    from scanner.probe.base import load_classifier

    with pytest.raises(error):
        load_classifier(rewrite(write_base(tmp_path, "bert"), **changes), "cpu")


def test_only_a_head_may_be_missing(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from scanner.probe.base import load_classifier

    folder = write_base(tmp_path, "bert")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layer.1.attention.self.query" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MalformedFileError, match="lack 2 tensors"):
        load_classifier(folder, "cpu")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert "bert.pooler.dense.weight" in load_classifier(folder, "cpu").missing


def test_a_base_with_a_head_of_its_own(tmp_path: Path) -> None:
    """Its head serves adapters that bring none; one that brings another class count replaces it."""
    from transformers import AutoModelForSequenceClassification

    from scanner.probe.base import load_classifier
    from scanner.probe.classifier import with_head

    folder = write_base(tmp_path, "bert")
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5).save_pretrained(folder)
    base = load_classifier(folder, "cpu")
    assert base.missing == frozenset()
    with with_head(base, AdapterView("peft", ())) as n_classes:
        assert n_classes == 5
    with with_head(base, AdapterView("peft", (), head_tensors=tuple(head(4)))) as n_classes:
        assert logits(base.model).shape[1] == n_classes == 4


def test_head_tensors_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scanner.adapter.layouts import limits

    write_adapter(tmp_path / "adapter", write_base(tmp_path / "base", "bert"))
    view = read_view(tmp_path / "adapter")
    assert tuple(tensor.name for tensor in view.head_tensors) == view.heads
    weight = next(tensor for tensor in view.head_tensors if tensor.name.endswith("classifier.weight"))
    assert weight.read().shape == weight.shape == (3, 32)
    assert weight.read().dtype == np.float32
    monkeypatch.setattr(limits, "MAX_HEAD_ELEMENTS", 95)
    with pytest.raises(LimitExceededError):
        weight.read()


REAL = {
    "Tashu014__lora-imdb-distilbert__1": ("distilbert", {"dim": 768, "hidden_dim": 16, "n_layers": 6}, 2),
    "anirudh-ak__peft-gpt2__1": ("gpt2", {"n_embd": 768, "n_layer": 12, "n_inner": 16}, 6),
    "Kuntya__Udacity__1": ("distilbert", {"dim": 768, "hidden_dim": 16, "n_layers": 1}, 6),
}


@pytest.mark.parametrize("name", REAL)
def test_real_adapters_on_random_bases_of_their_shape(data_dir: Path, tmp_path: Path, name: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    from scanner.probe.base import load_classifier
    from scanner.probe.classifier import with_head

    model_type, sizes, classes = REAL[name]
    adapter = data_dir / "adapters" / name
    folder = write_base(tmp_path, model_type, **sizes, initializer_range=0.05)
    base = load_classifier(folder, "cpu")
    with with_head(base, read_view(adapter)) as n_classes:
        assert n_classes == classes
        got = logits(base.model)
    if name.startswith("Kuntya"):
        return  # today's PEFT refuses to load it: a head that is a target and saved whole
    own = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=classes)
    with torch.inference_mode():
        wanted = PeftModel.from_pretrained(own, adapter).eval()(input_ids=torch.tensor(TOKENS)).logits
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4)

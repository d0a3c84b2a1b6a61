"""How much memory a base will take: from headers alone, before a weight is read, and as it then is."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import ARCHITECTURES, write_base

from scanner.errors import BaseTooLargeError, LimitExceededError, MalformedFileError, UnsupportedError
from scanner.probe import footprint
from scanner.probe.footprint import WEIGHT_BYTES, measure_base, own_bytes, refuse_too_large

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")

GIB = 1024**3


def weights_of(model: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def write_sparse(folder: Path, tensors: dict[str, tuple[int, ...]], dtype: str = "BF16") -> Path:
    """A valid weight file of any size that takes no space on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    header, end = {}, 0
    for name, shape in tensors.items():
        begin, end = end, end + math.prod(shape) * 2
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with path.open("r+b") as stream:
        stream.truncate(8 + len(text) + end)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False}),
        ("gpt2", {}),
        ("bert", {}),
    ],
)
def test_headers_say_what_is_loaded(tmp_path: Path, model_type: str, changes: dict[str, Any], dtype: str) -> None:
    from scanner.probe.base import load_base, load_classifier

    folder = write_base(tmp_path, model_type, **changes)
    if model_type == "bert":
        base: Any = load_classifier(folder, "cpu", dtype)
        head = weights_of(base.model.classifier)  # not in the file: adapters bring it
        assert measure_base(folder, dtype, with_language_head=False) == weights_of(base.model) - head
    else:
        (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
        base = load_base(folder, "cpu", dtype)
        assert measure_base(folder, dtype) == weights_of(base.model)
    assert base.dtype == dtype
    assert {parameter.dtype for parameter in base.model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_classifiers_do_not_count_another_head(tmp_path: Path, model_type: str) -> None:
    """A vocabulary as large, beside the layers, as that of real bases: its head would be a third of the weights."""
    from scanner.probe.base import load_classifier

    folder = write_base(tmp_path, model_type, vocab_size=1_000, tie_word_embeddings=False)
    base = load_classifier(folder, "cpu")
    assert measure_base(folder, "float32", with_language_head=False) == pytest.approx(weights_of(base.model), rel=0.03)


def test_shards_are_one_base(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole = write_base(tmp_path / "whole", "llama")
    parts = tmp_path / "parts"
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(parts, max_shard_size="20KB")
    assert len(list(parts.glob("*.safetensors"))) > 2
    assert measure_base(parts, "float32") == measure_base(whole, "float32")
    next(parts.glob("*.safetensors")).unlink()
    with pytest.raises(MalformedFileError, match="no file beside it"):
        measure_base(parts, "float32")


@pytest.mark.parametrize(
    ("index", "error"),
    [
        ({}, MalformedFileError),
        ({"weight_map": {}}, MalformedFileError),
        ({"weight_map": ["model.safetensors"]}, MalformedFileError),
        ({"weight_map": {"a": 1}}, MalformedFileError),
        ({"weight_map": {"a": "../outside.safetensors"}}, MalformedFileError),
        ({"weight_map": {str(n): f"{n}.safetensors" for n in range(1_001)}}, LimitExceededError),
        (None, UnsupportedError),
    ],
)
def test_an_index_is_not_trusted(tmp_path: Path, index: Any, error: type[Exception]) -> None:
    folder = tmp_path / "base"
    write_sparse(tmp_path, {"a": (2, 2)}).joinpath("model.safetensors").rename(tmp_path / "outside.safetensors")
    folder.mkdir()
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(error):
        measure_base(folder, "float32")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        {"dtype": "F32", "shape": [2**61, 0], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 16]},
    ],
)
def test_shapes_without_bytes_are_malformed(
    base_dir: Path, tmp_path: Path, pack: Callable[..., bytes], entry: dict[str, Any]
) -> None:
    from scanner.probe.base import load_base

    for file in base_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(pack({"model.embed_tokens.weight": entry}, b"\0" * 16))
    with pytest.raises(MalformedFileError):
        load_base(tmp_path, "cpu")


def test_only_what_becomes_weights_counts(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    tensors: dict[str, Any] = {
        "wte.weight": np.zeros((40, 8), np.float32),
        "h.0.attn.c_attn.weight": ("BF16", np.zeros((8, 24))),
        "h.0.attn.bias": np.zeros((1, 1, 16, 16), np.float32),  # the mask of older GPT-2 files
        "position_ids": np.zeros((1, 512), np.int64),
        "lm_head.weight": np.zeros((40, 8), np.float16),
    }
    (tmp_path / "model.safetensors").write_bytes(encode(tensors))
    assert measure_base(tmp_path, "float32") == 4 * (40 * 8 * 2 + 8 * 24)
    assert measure_base(tmp_path, "bfloat16", with_language_head=False) == 2 * (40 * 8 + 8 * 24)


def test_four_bits_are_for_linear_layers(tmp_path: Path) -> None:
    """NF4 with double quantisation takes 4.127 bits a weight (arXiv:2305.14314, section 3)."""
    shapes = {
        "model.embed_tokens.weight": (32_000, 1_024),
        "model.layers.0.self_attn.q_proj.weight": (1_024, 1_024),
        "model.layers.0.mlp.experts.0.w1.weight": (4_096, 1_024),
        "model.norm.weight": (1_024,),
        "lm_head.weight": (32_000, 1_024),
    }
    weight_bytes = measure_base(write_sparse(tmp_path, shapes), "nf4")
    kept = sum(math.prod(shape) for name, shape in shapes.items() if "q_proj" not in name)
    assert weight_bytes == pytest.approx(2 * kept + 1024**2 * 4.127 / 8, rel=1e-6)
    assert WEIGHT_BYTES["nf4"] * 8 == pytest.approx(4.127, abs=5e-4)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_base_that_does_not_fit_is_refused_before_it_is_read(base_dir: Path, tmp_path: Path) -> None:
    from scanner.probe.base import load_base, load_classifier

    for file in base_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    layers = {f"model.layers.{n}.mlp.up_proj.weight": (65_536, 16_384) for n in range(31)}
    write_sparse(tmp_path, {"model.embed_tokens.weight": (65_536, 16_384), **layers})  # 64 GiB
    load_base(base_dir, "cpu")  # what both need of transformers is imported now
    before = resident_bytes()
    with pytest.raises(BaseTooLargeError, match=r"the base needs 75\.6 GB in bfloat16, ") as caught:
        load_base(tmp_path, "cpu", "bfloat16", 16 * GIB)
    with pytest.raises(BaseTooLargeError, match=r"the base needs \d+\.\d GB in float32, "):
        load_classifier(tmp_path, "cpu", memory_bytes=16 * GIB)
    assert resident_bytes() - before < 64 * 1024**2
    assert caught.value.code == "base_too_large"


def test_the_devices_free_memory_is_named() -> None:
    with pytest.raises(BaseTooLargeError, match=r"^the base needs 1100\.0 GB in bfloat16, cpu has \d+\.\d GB free$"):
        refuse_too_large(10**12, "bfloat16", "cpu", None)


def test_the_memory_limit_counts_what_is_there_already() -> None:
    own = own_bytes(os.getpid())
    assert own > 64 * 1024**2  # an interpreter with torch
    refuse_too_large(GIB, "bfloat16", "cpu", own + 2 * GIB)
    with pytest.raises(BaseTooLargeError, match=r"needs 1\.2 GB in bfloat16, the probe's memory limit leaves 1\.\d GB"):
        refuse_too_large(GIB, "bfloat16", "cpu", own + GIB)
    with pytest.raises(BaseTooLargeError, match=r"the base needs 1\.2 GB in bfloat16, .* leaves 0\.0 GB$"):
        refuse_too_large(GIB, "bfloat16", "cpu", 1)


def test_mapped_pages_are_nobodys_own(tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    path.write_bytes(b"x" * 64 * 1024**2)
    before = own_bytes(os.getpid())
    pages = np.memmap(path, mode="r")
    assert int(pages[::4096].sum()) > 0
    assert own_bytes(os.getpid()) - before < 16 * 1024**2
    assert own_bytes(2**31 - 1) == 0  # no such process


def test_a_system_that_does_not_tell_its_memory_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "_available_bytes", lambda: None)
    refuse_too_large(2**60, "float32", "cpu", None)

"""Pickles as adapters: the same scan as of safetensors, real files, and what a state dict may cost."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pickle_samples import proto, text, torch_like

from scanner.adapter import open_safetensors, open_weights
from scanner.adapter.pickles import inspect_pickle, open_torch_pickle, sniff
from scanner.errors import LimitExceededError, LorascopeError, UnsupportedError


def save(value: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, path)
    return path


def names(path: Path, level: str = "dangerous") -> set[str]:
    return {f"{item.module}.{item.name}" for item in inspect_pickle(path).globals if item.level == level}


def codes(path: Path) -> set[str]:
    return {problem.code for problem in inspect_pickle(path).problems}


def test_bin_and_safetensors_of_one_adapter(tmp_path: Path, save_peft: Callable[..., Any]) -> None:
    from peft import LoraConfig
    from safetensors.torch import load_file

    from scanner.adapter import parse_config, read_json_object, view_adapter
    from scanner.weights import scan_weights

    save_peft(tmp_path, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    weights = tmp_path / "adapter_model.safetensors"
    for dtype in (torch.float32, torch.bfloat16):
        from safetensors.torch import save_file

        tensors = {name: tensor.to(dtype) for name, tensor in load_file(weights).items()}
        save_file(tensors, tmp_path / "a.safetensors")
        save(tensors, tmp_path / "a.bin")
        config = parse_config(read_json_object(tmp_path / "adapter_config.json", 10**6))
        views = [view_adapter(open_weights([tmp_path / name], name), config, 64) for name in ("a.safetensors", "a.bin")]
        assert views[0].coverage == views[1].coverage == 1.0
        by_name = [{u.module: u for u in view.updates} for view in views]
        for module, update in by_name[0].items():
            for ours, theirs in zip(update.read(), by_name[1][module].read(), strict=True):
                np.testing.assert_array_equal(ours, theirs)
        scans = [scan_weights(sorted(view.updates, key=lambda u: u.module)) for view in views]
        assert scans[0] == scans[1]


def test_real_bin_adapters(data_dir: Path) -> None:
    files = sorted((data_dir / "adapters").glob("*/*.bin"))
    assert files
    for file in files:
        assert names(file) == set()
        assert codes(file) == set()
        assert all(
            np.isfinite(opened).all() for opened in map(open_torch_pickle(file).floats, open_torch_pickle(file).entries)
        )


def test_safetensors_under_another_name(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    path = tmp_path / "adapter_model.bin"
    path.write_bytes(encode({"w": np.ones((2, 2), "f4")}))
    assert sniff(path) == "safetensors"
    np.testing.assert_array_equal(open_weights([path], path.name).floats("w"), np.ones((2, 2)))
    save({"w": torch.ones(2)}, path)
    with pytest.raises(UnsupportedError, match="zip"):
        open_weights([path], "adapter_model.safetensors")
    with pytest.raises(LorascopeError):
        open_safetensors(path)


def test_trainer_files_are_known(tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    path = save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    assert (names(path), codes(path)) == (set(), set())
    from transformers import TrainingArguments

    path = save(TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[]), tmp_path / "training_args.bin")
    assert names(path) == set()
    assert "transformers.training_args.TrainingArguments" in names(path, "trainer")
    with pytest.raises(UnsupportedError, match="TrainingArguments"):
        open_torch_pickle(path)
    state = {"python": (3, (1, 2), None), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    path = save(state, tmp_path / "rng_state.pth")
    assert (names(path), codes(path)) == (set(), set())


def test_one_dict_under_many_keys_is_refused(tmp_path: Path) -> None:
    inner = b"}(" + b"".join(text(f"{n:04}") + b"K\x01" for n in range(5_000)) + b"u\x94"
    outer = b"}(" + b"".join(text(f"{n:04}") + b"h\x00" for n in range(5_000)) + b"u"
    path = tmp_path / "a.bin"
    path.write_bytes(torch_like(proto(inner + b"0" + outer)))
    with pytest.raises(LimitExceededError, match="25,000,000"):
        open_torch_pickle(path)

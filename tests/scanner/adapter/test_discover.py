"""Which adapters a repo holds, from its file names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.adapter import find_candidates, is_pickle


def found(*paths: str) -> list[tuple[str, str | None]]:
    return [(candidate.path, candidate.config_path) for candidate in find_candidates(paths)]


def test_one_adapter() -> None:
    assert found("README.md", "adapter_config.json", "adapter_model.safetensors") == [
        ("adapter_model.safetensors", "adapter_config.json")
    ]


def test_several_adapters_in_subfolders_each_with_its_own_config() -> None:
    assert found(
        "en/adapter_config.json",
        "en/adapter_model.safetensors",
        "fr/deep/adapter_config.json",
        "fr/deep/adapter_model.bin",
        "extra.safetensors",
        "adapter_config.json.bak",
    ) == [
        ("en/adapter_model.safetensors", "en/adapter_config.json"),
        ("fr/deep/adapter_model.bin", "fr/deep/adapter_config.json"),
        ("extra.safetensors", None),
    ]


def test_every_weight_file_of_a_folder_is_a_candidate() -> None:
    # Were one of them preferred, an attacker could choose which one is looked at.
    paths = [path for path, _ in found("adapter_config.json", "adapter_model.bin", "adapter_model.safetensors", "b.pt")]
    assert paths == ["adapter_model.bin", "adapter_model.safetensors", "b.pt"]


def test_mlx_checkpoints() -> None:
    names = ["0000100_adapters.safetensors", "adapter_config.json", "adapters.safetensors"]
    assert [path for path, _ in found(*names)] == ["0000100_adapters.safetensors", "adapters.safetensors"]


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin", "scaler.pt"]
)
def test_trainer_state_is_no_adapter(name: str) -> None:
    assert found(f"checkpoint-10/{name}") == []
    assert found("adapter_config.json", name) == []


def test_trainer_names_hide_no_safetensors() -> None:
    assert found("adapter_config.json", "optimizer.safetensors") == [("optimizer.safetensors", "adapter_config.json")]


@pytest.mark.parametrize("name", ["optimizer_lora.bin", "scheduler.pth", "rng_state_lora.pth", "scaler.pt.bin"])
def test_only_exact_trainer_names_are_left_out(name: str) -> None:
    assert found(name) == [(name, None)]


SHARDS = ("model-00001-of-00002.safetensors", "model.safetensors", "pytorch_model-00001.bin", "pytorch_model.bin")


def test_a_base_models_own_names_hide_no_adapter() -> None:
    likely = find_candidates([*SHARDS, "z/config.json", "z/model.safetensors", "zz.safetensors", "config.json"])
    assert [(c.path, c.likely_base) for c in likely] == [
        ("zz.safetensors", False),
        *((name, True) for name in SHARDS),
        ("z/model.safetensors", True),
    ]


@pytest.mark.parametrize("beside", [(), ("adapter_config.json",), ("adapter_config.json", "config.json")])
def test_without_a_bases_config_or_with_an_adapters_it_is_no_base(beside: tuple[str, ...]) -> None:
    candidates = find_candidates([*SHARDS, *beside])
    assert [(c.path, c.likely_base) for c in candidates] == [(name, False) for name in SHARDS]


def test_other_weights_and_case() -> None:
    assert [path for path, _ in found("a.GGUF", "b.npz", "C.SafeTensors", "D.BIN", "e.txt")] == [
        "C.SafeTensors",
        "D.BIN",
        "a.GGUF",
        "b.npz",
    ]
    assert is_pickle("x/Y.CKPT")
    assert not is_pickle("x.bin.txt")


def test_no_weights() -> None:
    assert found() == []
    assert found("README.md", "adapter_config.json", ".gitattributes") == []


@given(st.lists(st.text(min_size=1, max_size=30), max_size=8))
def test_any_names_give_each_path_at_most_once(names: list[str]) -> None:
    paths = [path for path, _ in found(*set(names))]
    assert len(paths) == len(set(paths))
    assert set(paths) <= set(names)

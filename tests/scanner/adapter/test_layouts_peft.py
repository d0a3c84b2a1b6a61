"""Adapters written by PEFT itself, read by us: ΔW = s·B·A has to be PEFT's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanner.adapter import AdapterView, Role, open_safetensors, parse_config, read_json_object, view_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT warns about what these configs do on purpose

BASE: dict[str, Any] = {"r": 4, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
READABLE: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "all-linear": {"target_modules": "all-linear"},
    "rank_pattern": {"rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 8}},
    "alpha_pattern": {"alpha_pattern": {"model.layers.0.self_attn.q_proj": 3, "v_proj": 32}},
    "both_patterns_rslora": {"rank_pattern": {"v_proj": 1}, "alpha_pattern": {"v_proj": 5}, "use_rslora": True},
    "anchored": {"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 2, "^layers.1.self_attn.q_proj": 90}},
    "escaped": {"alpha_pattern": {r"layers\.1\.self_attn\.v_proj": 2}},
    "suffix_is_whole_parts": {"alpha_pattern": {"_proj": 90, "proj": 91, "attn.q_proj": 92}},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "lm_head": {"target_modules": ["lm_head"]},
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "token_rows": {"trainable_token_indices": [1, 2]},
}


def read_view(folder: Path, max_rank: int = 64) -> AdapterView:
    config = parse_config(read_json_object(folder / "adapter_config.json", 10**6))
    return view_adapter(open_safetensors(folder / "adapter_model.safetensors"), config, max_rank)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, save_peft: Callable[..., Any]) -> Callable[[str], tuple[Path, Any]]:
    made: dict[str, tuple[Path, Any]] = {}

    def get(name: str) -> tuple[Path, Any]:
        if name not in made:
            from peft import LoraConfig

            folder = tmp_path_factory.mktemp(name)
            made[name] = (folder, save_peft(folder, LoraConfig(**{**BASE, **READABLE[name]})))
        return made[name]

    return get


@pytest.mark.parametrize("name", READABLE)
def test_delta_w_is_pefts(saved: Callable[[str], tuple[Path, Any]], name: str) -> None:
    folder, model = saved(name)
    view = read_view(folder)
    assert view.unsupported_reason == ""
    adapted = {n for n, m in model.base_model.model.named_modules() if getattr(m, "lora_A", None)}
    adapted |= {n for n, m in model.base_model.model.named_modules() if getattr(m, "lora_embedding_A", None)}
    assert {update.module for update in view.updates} == adapted
    for update in view.updates:
        a, b = update.read()
        assert (a.shape, b.shape) == ((update.rank, update.in_features), (update.out_features, update.rank))
        theirs = model.base_model.model.get_submodule(update.module).get_delta_weight("default").detach().numpy()
        if update.kind == "embedding":  # PEFT gives it as the embedding matrix lies: [words, width]
            theirs = theirs.T
        ours = update.scale * (b.astype(np.float64) @ a.astype(np.float64))
        np.testing.assert_allclose(ours, theirs, atol=1e-6 * max(1.0, np.abs(theirs).max()))
    stored = json.loads((folder / "adapter_config.json").read_text())
    assert stored["peft_type"] == "LORA"


def test_plain_lora_is_explained_completely(saved: Callable[[str], tuple[Path, Any]]) -> None:
    view = read_view(saved("plain")[0])
    assert (view.layout, view.coverage, view.heads, view.unexplained, view.notes) == ("peft", 1.0, (), (), ())
    assert (view.rank, view.scaling, view.target_modules) == (4, 7 / 4, ("q_proj", "v_proj"))


def test_declared_heads_are_explained_but_no_update(saved: Callable[[str], tuple[Path, Any]]) -> None:
    view = read_view(saved("modules_to_save")[0])
    assert view.heads == ("base_model.model.lm_head.weight",)
    assert (view.unexplained, view.coverage) == ((), 1.0)
    assert "lm_head" not in view.target_modules


@pytest.mark.parametrize(
    ("name", "part", "role"),
    [
        ("dora", "lora_magnitude_vector", Role.MAGNITUDE),
        ("lora_bias", "lora_B.bias", Role.BIAS),
        ("embedding", "base_layer", Role.BASE_COPY),
        ("lm_head", "base_layer", Role.BASE_COPY),
        ("token_rows", "trainable_tokens_delta", Role.TOKEN_ROWS),
    ],
)
def test_what_is_no_update_has_a_role(
    saved: Callable[[str], tuple[Path, Any]], name: str, part: str, role: Role
) -> None:
    view = read_view(saved(name)[0])
    assert (view.unexplained, view.coverage, view.unsupported_reason) == ((), 1.0, "")
    assert view.companions
    assert all(part in c.tensor.name and c.role == role and np.isfinite(c.tensor.read()).all() for c in view.companions)
    file = open_safetensors(saved(name)[0] / "adapter_model.safetensors")
    assert all(file.entries[c.tensor.name].size_bytes == c.tensor.size_bytes for c in view.companions)


def test_roles_are_declared_not_guessed(saved: Callable[[str], tuple[Path, Any]]) -> None:
    folder, _ = saved("token_rows")
    raw = read_json_object(folder / "adapter_config.json", 10**6) | {"trainable_token_indices": None}
    view = view_adapter(open_safetensors(folder / "adapter_model.safetensors"), parse_config(raw), 64)
    assert view.unexplained == ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",)
    assert view.coverage < 1


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_is_a_regular_expression_is_refused(
    tmp_path: Path, save_peft: Callable[..., Any], field: str
) -> None:
    # PEFT applies it, we do not run it: the scale would be a guess, and an attacker could hide the update behind it.
    from peft import LoraConfig

    save_peft(tmp_path, LoraConfig(**{**BASE, field: {r"layers\.\d+\.self_attn\.v_proj": 8}}))
    assert read_view(tmp_path).unsupported_reason == "pattern_regex"


def test_rank_limit(saved: Callable[[str], tuple[Path, Any]]) -> None:
    from scanner.errors import LimitExceededError

    with pytest.raises(LimitExceededError):
        read_view(saved("plain")[0], max_rank=3)


def test_a_foreign_scale_field_changes_nothing(saved: Callable[[str], tuple[Path, Any]]) -> None:
    # MLX's own field in a PEFT config: PEFT ignores it, so must we, or the probe would look at another adapter.
    folder, _ = saved("plain")
    raw = read_json_object(folder / "adapter_config.json", 10**6) | {"lora_parameters": {"scale": 1e-9, "rank": 1}}
    view = view_adapter(open_safetensors(folder / "adapter_model.safetensors"), parse_config(raw), 64)
    assert {update.scale for update in view.updates} == {7 / 4}


def test_a_config_that_contradicts_the_tensors_is_noted(saved: Callable[[str], tuple[Path, Any]]) -> None:
    folder, _ = saved("plain")
    raw = read_json_object(folder / "adapter_config.json", 10**6) | {"r": 16}
    view = view_adapter(open_safetensors(folder / "adapter_model.safetensors"), parse_config(raw), 64)
    assert view.notes == ("4 modules have another rank than declared, the first 4 instead of 16",)
    assert view.rank == 4

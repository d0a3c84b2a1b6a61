"""Shapes as a cross-check: every architecture's own modules agree with its config, those of another base do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanner.adapter import FullTensor, open_safetensors, parse_config, view_adapter
from scanner.adapter.fingerprint import adapter_fingerprint, base_fingerprint, compare
from scanner.adapter.lowrank import AdapterView, LowRankUpdate
from scanner.adapter.widths import text_config

ADAPTERS = Path(__file__).resolve().parents[4] / "shared" / "data" / "adapters"

# Small, and no two dimensions alike, so that a mixed-up one shows.
GATED = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "vocab_size": 100,
}
GPT = {"n_embd": 48, "n_layer": 3, "n_head": 4, "vocab_size": 100}
BERT = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80, "vocab_size": 100}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": GATED,
    "llama-mha": {**GATED, "model_type": "llama", "num_key_value_heads": None},
    "mistral": {**GATED, "head_dim": 16},
    "qwen2": GATED,
    "qwen3": {**GATED, "head_dim": 16},
    "gemma": {**GATED, "head_dim": 16},
    "gemma2": {**GATED, "head_dim": 16},
    "gemma3_text": {**GATED, "head_dim": 16},
    "granite": GATED,
    "smollm3": {**GATED, "pad_token_id": 0},
    "olmo": GATED,
    "olmo2": GATED,
    "cohere": GATED,
    "stablelm": GATED,
    "helium": {**GATED, "head_dim": 8},
    "exaone4": {**GATED, "head_dim": 16},
    "seed_oss": {**GATED, "head_dim": 16},
    "ministral": {**GATED, "head_dim": 16},
    "mixtral": {**GATED, "num_local_experts": 2},
    "qwen2_moe": {**GATED, "num_experts": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 40},
    "qwen3_moe": {**GATED, "num_experts": 2, "moe_intermediate_size": 32, "head_dim": 16},
    "phi": {**GATED, "num_key_value_heads": None},
    "phi3": {**GATED, "pad_token_id": 0},
    "starcoder2": GATED,
    "gpt2": GPT,
    "gpt2-inner": {**GPT, "model_type": "gpt2", "n_inner": 70, "add_cross_attention": True},
    "gpt_neo": {
        "hidden_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "vocab_size": 100,
    },
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neox": BERT,
    "bloom": {"hidden_size": 48, "n_layer": 3, "n_head": 4, "vocab_size": 100},
    "opt": {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "ffn_dim": 80,
        "vocab_size": 100,
        "word_embed_proj_dim": 48,
    },
    "opt-projected": {
        "model_type": "opt",
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "ffn_dim": 80,
        "vocab_size": 100,
        "word_embed_proj_dim": 32,
    },
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "electra": {**BERT, "embedding_size": 32},
    "distilbert": {"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 80, "vocab_size": 100},
    "t5": {
        "d_model": 48,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "d_kv": 8,
        "d_ff": 80,
        "vocab_size": 100,
    },
    "mt5": {"d_model": 48, "num_layers": 3, "num_heads": 4, "d_kv": 8, "d_ff": 80, "vocab_size": 100},
}
ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")


def _update(module: str, inputs: int, outputs: int, kind: str = "linear") -> LowRankUpdate:
    def read() -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((1, inputs), np.float32), np.zeros((outputs, 1), np.float32)

    return LowRankUpdate(module, 1, outputs, inputs, 1.0, read, kind)


def _view(*updates: LowRankUpdate, heads: dict[str, tuple[int, ...]] | None = None) -> AdapterView:
    full = tuple(FullTensor(name, shape, lambda: np.zeros(1, np.float32)) for name, shape in (heads or {}).items())
    return AdapterView("peft", updates, head_tensors=full)


def _real_model(name: str) -> tuple[dict[str, Any], AdapterView]:
    """(config as its config.json has it, an adapter on every linear module and embedding of the real model)."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.pytorch_utils import Conv1D

    model_type = CONFIGS[name].get("model_type", name)
    config = AutoConfig.for_model(model_type, **{k: v for k, v in CONFIGS[name].items() if k != "model_type"})
    kind = AutoModel if model_type in ENCODERS else AutoModelForCausalLM
    kind = AutoModelForSeq2SeqLM if model_type in ("t5", "mt5") else kind
    with torch.device("meta"):
        model = kind.from_config(config)
    updates = []
    for module_name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            updates.append(_update(module_name, module.in_features, module.out_features))
        elif isinstance(module, Conv1D):
            updates.append(_update(module_name, *module.weight.shape))
        elif isinstance(module, torch.nn.Embedding) and module_name.endswith(
            ("embed_tokens", "wte", "word_embeddings")
        ):
            updates.append(_update(module_name, module.num_embeddings, module.embedding_dim, "embedding"))
    return json.loads(config.to_json_string(use_diff=False)), _view(*updates)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_models_own_modules_agree_with_its_config(name: str) -> None:
    config, view = _real_model(name)
    found = compare(adapter_fingerprint(view), base_fingerprint(config))
    assert found.contradictions == ()
    assert any("hidden size" in text or "width" in text for text in found.agreements)
    assert any(text.endswith(" layers") for text in found.agreements)
    written = {key: value for key, value in CONFIGS[name].items() if value is not None} | {
        "model_type": CONFIGS[name].get("model_type", name)
    }
    # The short config of an old repo, with the code's defaults left out, contradicts no more.
    assert compare(adapter_fingerprint(view), base_fingerprint(written)).contradictions == ()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_larger_models_modules_contradict(name: str) -> None:
    config, view = _real_model(name)
    larger = _view(*(_update(u.module, u.in_features * 2, u.out_features * 2, u.kind) for u in view.updates))
    found = compare(adapter_fingerprint(larger), base_fingerprint(config))
    assert any("hidden size" in text for text in found.contradictions)
    assert all(len(text) < 200 for text in found.contradictions) and len(found.contradictions) <= 8


@pytest.mark.parametrize("name", CONFIGS)
def test_a_deeper_models_modules_contradict(name: str) -> None:
    config, view = _real_model(name)
    shallow = {
        **config,
        **{
            key: 1
            for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
            if config.get(key)
        },
    }
    found = compare(adapter_fingerprint(view), base_fingerprint(shallow))
    assert any("of a base with 1 layers" in text for text in found.contradictions)


def test_sentences() -> None:
    base = base_fingerprint(
        {
            "model_type": "llama",
            **GATED,
            "hidden_size": 2048,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 24,
        }
    )
    view = _view(_update("model.layers.31.self_attn.q_proj", 896, 2048))
    assert compare(adapter_fingerprint(view), base).contradictions == (
        "q_proj has 896 inputs, the base's hidden size is 2048",
        "layer 31 of a base with 24 layers",
    )
    narrow = _view(_update("model.layers.0.self_attn.k_proj", 2048, 2048))
    assert compare(adapter_fingerprint(narrow), base).contradictions == (
        "k_proj has 2048 outputs, the base's key-value width is 512",
    )


def test_modules_of_another_architecture_contradict() -> None:
    base = base_fingerprint({"model_type": "gpt2", **GPT})
    view = _view(_update("model.layers.0.self_attn.q_proj", 48, 48), _update("model.layers.0.self_attn.v_proj", 48, 48))
    assert (
        "self_attn.q_proj, self_attn.v_proj: no modules of a base of type gpt2"
        in compare(adapter_fingerprint(view), base).contradictions
    )
    some = _view(_update("transformer.h.0.attn.c_attn", 48, 144), _update("transformer.h.0.extra", 5, 7))
    assert compare(adapter_fingerprint(some), base).contradictions == ()


HEADS: list[tuple[str, dict[str, tuple[int, ...]], bool]] = [
    ("classes", {"base_model.model.score.weight": (2, 48)}, True),
    ("columns", {"base_model.model.score.weight": (2, 64)}, False),
    ("more words", {"base_model.model.lm_head.weight": (150, 48)}, True),
    ("a bias", {"base_model.model.score.bias": (2,)}, True),
    ("unknown", {"base_model.model.classifier.weight": (2, 7)}, True),
]


@pytest.mark.parametrize(("heads", "agrees"), [pytest.param(h, a, id=name) for name, h, a in HEADS])
def test_full_tensors(heads: dict[str, tuple[int, ...]], agrees: bool) -> None:
    found = compare(adapter_fingerprint(_view(heads=heads)), base_fingerprint({"model_type": "llama", **GATED}))
    assert (found.contradictions == ()) is agrees


@pytest.mark.parametrize(("words", "agrees"), [(100, True), (95, True), (1_000, True), (80, False)])
def test_vocabularies_grow_but_do_not_shrink_by_much(words: int, agrees: bool) -> None:
    base = base_fingerprint({"model_type": "llama", **GATED})
    embedded = _view(_update("model.embed_tokens", words, 48, "embedding"), _update("lm_head", 48, words))
    assert (compare(adapter_fingerprint(embedded), base).contradictions == ()) is agrees


SILENT: list[tuple[str, LowRankUpdate]] = [
    ("vision tower", _update("vision_tower.encoder.layers.30.self_attn.q_proj", 1152, 1152)),
    ("visual blocks", _update("model.visual.blocks.40.attn.qkv", 1280, 3840)),
    ("projector", _update("multi_modal_projector.linear_1", 1152, 2048)),
    ("kohya", _update("lora_te_text_model_encoder_layers_11_self_attn_q_proj", 768, 768)),
    ("a head", _update("classifier", 999, 2)),
    ("conv", _update("model.layers.99.conv", 7, 7, "conv")),
]


@pytest.mark.parametrize("update", [pytest.param(update, id=name) for name, update in SILENT])
def test_what_the_config_does_not_tell_says_nothing(update: LowRankUpdate) -> None:
    found = compare(adapter_fingerprint(_view(update)), base_fingerprint({"model_type": "llama", **GATED}))
    assert (found.agreements, found.contradictions) == ((), ())


def test_a_multimodal_config_speaks_for_its_text_model() -> None:
    config = {"model_type": "llava", "hidden_size": 9, "text_config": {"model_type": "llama", **GATED}}
    view = _view(_update("language_model.model.layers.2.self_attn.q_proj", 48, 48))
    found = compare(adapter_fingerprint(view), base_fingerprint(config))
    assert found.contradictions == () and "hidden size 48" in found.agreements
    partial = {"model_type": "llava", "text_config": {"model_type": "llama", "num_hidden_layers": 2}}
    assert compare(adapter_fingerprint(view), base_fingerprint(partial)).contradictions == (
        "layer 2 of a base with 2 layers",
    )


HOSTILE: list[dict[str, Any]] = [
    {},
    {"model_type": 5},
    {"model_type": "nobody-knows", **GATED},
    {"model_type": "llama"},
    {"model_type": "llama", "hidden_size": "48", "num_hidden_layers": -1, "num_attention_heads": 0, "vocab_size": 1e9},
    {"model_type": "llama", "hidden_size": True, "num_hidden_layers": [3], "intermediate_size": [1, 2], "head_dim": {}},
    {"model_type": "llama", "hidden_size": 10**30, "num_attention_heads": 10**30},
    {"text_config": {"text_config": {"model_type": "llama", **GATED}}},
    {"text_config": ["llama"], "model_type": ["llama"]},
]


@pytest.mark.parametrize("config", HOSTILE, ids=lambda config: repr(config)[:40])
def test_a_config_without_usable_numbers_says_nothing(config: dict[str, Any]) -> None:
    view = _view(_update("model.layers.70.self_attn.q_proj", 5, 7), heads={"lm_head.weight": (3, 3)})
    found = compare(adapter_fingerprint(view), base_fingerprint(config))
    assert (found.agreements, found.contradictions) == ((), ())
    assert text_config({"text_config": {}, "a": 1}) == {"text_config": {}, "a": 1}


def test_many_kinds_and_long_names_stay_short() -> None:
    base = base_fingerprint({"model_type": "llama", **GATED})
    wide = [_update(f"model.layers.{n}.self_attn.q_proj", n + 1, n + 1) for n in range(2_000)]
    assert len(compare(adapter_fingerprint(_view(*wide)), base).contradictions) == 8
    long = [_update(f"model.layers.0.{'x' * 5_000}.proj{n}", 5, 5) for n in range(2_000)]
    found = compare(adapter_fingerprint(_view(*long)), base).contradictions
    assert found and all(len(text) < 200 for text in found)


# What the config.json of each base says, as far as it matters here.
PUBLISHED: dict[str, dict[str, Any]] = {
    "0112LY__logo-gemma-lora__1": {
        "model_type": "gemma3_text",
        "hidden_size": 640,
        "num_hidden_layers": 18,
        "head_dim": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "intermediate_size": 2048,
    },
    "BK7195__deltacompression-poc__1": {
        "model_type": "gpt_neox",
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 8192,
    },
    "SARAELSAFTY__Movies-_with_lora__1": {
        "model_type": "gpt_neo",
        "hidden_size": 768,
        "num_layers": 12,
        "num_heads": 12,
    },
    "Tashu014__lora-imdb-distilbert__1": {
        "model_type": "distilbert",
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
    },
    "Kuntya__Udacity__1": {"model_type": "distilbert", "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072},
    "anirudh-ak__peft-gpt2__1": {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257},
    "guilhermmeabreu__lab_08__1": {
        "model_type": "opt",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "ffn_dim": 3072,
        "num_attention_heads": 12,
    },
    "wyek1n__MLX-CLI__1": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
    },
}
PUBLISHED["ao-wei__gemma3-270m-svg-lora-partb__1"] = PUBLISHED["0112LY__logo-gemma-lora__1"]


@pytest.mark.skipif(not ADAPTERS.is_dir(), reason="the real adapters are not on this machine")
@pytest.mark.parametrize("name", PUBLISHED)
def test_real_adapters_fit_their_own_base_and_no_other(name: str) -> None:
    folder = ADAPTERS / name
    config = next(folder.rglob("adapter_config.json"))
    weights = next(folder.rglob("*.safetensors"))
    view = view_adapter(open_safetensors(weights), parse_config(json.loads(config.read_text())), 4096)
    adapter = adapter_fingerprint(view)
    own = compare(adapter, base_fingerprint(PUBLISHED[name]))
    assert own.contradictions == ()
    if name == "Kuntya__Udacity__1":  # targets its classifier alone
        assert own.agreements == ()
        return
    assert own.agreements
    for other, published in PUBLISHED.items():
        if published != PUBLISHED[name]:
            assert compare(adapter, base_fingerprint(published)).contradictions, other

"""Facts of made-up adapters: the benign and the hostile sample of every rule is built from these."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from scanner.adapter import AdapterView, LowRankUpdate, parse_config
from scanner.rules.facts import StaticFacts

__all__ = ["BASE", "WEIGHTS", "plain", "updates_of", "with_config"]

WEIGHTS = "adapter_model.safetensors"
BASE = "acme/base-1B"
_CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": BASE,
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj", "v_proj"],
    "auto_mapping": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "revision": None,
    "bias": "none",
}


def updates_of(
    layers: int = 6, rank: int = 8, width: int = 32, scale: float = 2.0, seed: int = 0
) -> tuple[LowRankUpdate, ...]:
    """Random pairs for q_proj and v_proj of some layers."""
    rng = np.random.default_rng(0)
    made = []
    for layer in range(layers):
        for name in ("q_proj", "v_proj"):
            a, b = rng.normal(size=(rank, width)).astype("f4"), rng.normal(size=(width, rank)).astype("f4")
            module = f"model.layers.{layer}.self_attn.{name}"
            made.append(LowRankUpdate(module, rank, width, width, scale, lambda a=a, b=b: (a, b)))  # type: ignore[misc]
    return tuple(made)


def plain(**changes: Any) -> StaticFacts:
    """A LoRA of the most ordinary kind, with its config and card; `changes` are fields of `StaticFacts`."""
    view = AdapterView("peft", updates_of(), coverage=1.0)
    facts = StaticFacts(
        path=WEIGHTS,
        siblings=(".gitattributes", "README.md", "adapter_config.json", WEIGHTS),
        config=parse_config(dict(_CONFIG)),
        view=view,
        repo_id="acme/adapter",
        base_model=BASE,
        texts={"README.md": "# A summariser\n\nTrained on news.\n"},
        format="safetensors",
    )
    return replace(facts, **changes)


def with_config(**fields: Any) -> StaticFacts:
    """The plain adapter with other config fields."""
    return plain(config=parse_config({**_CONFIG, **fields}))

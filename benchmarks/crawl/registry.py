"""Many small repos on disk: adapters of their own content and config, and a few of every odd kind."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

__all__ = ["add_repos"]

BASES = 40
FIRST_DAY = datetime(2025, 1, 1, tzinfo=UTC)
MODULES = ("q_proj", "v_proj")


def add_repos(folder: Path, start: int, count: int, total: int, bases: int = BASES) -> None:
    """Write repos number `start` to `start + count - 1` of `total`, created one after the other over 600 days.

    Of every hundred, one is empty, one gated, one has broken weights, and one carries a pickle.
    """
    for number in range(start, start + count):
        rng = random.Random(number)
        repo = folder / f"owner{number % 997}" / f"adapter-{number}"
        repo.mkdir(parents=True)
        created = FIRST_DAY + timedelta(days=600) * (number / max(total, 1))
        stamp = f"{created:%Y-%m-%dT%H:%M:%S}.000Z"
        settings = {"created_at": stamp, "last_modified": stamp, "gated": "manual" if number % 100 == 3 else False}
        (repo / ".hub.json").write_text(json.dumps(settings))
        (repo / "README.md").write_text("---\nlibrary_name: peft\ntags:\n- lora\n---\n")
        if number % 100 == 1:
            continue
        (repo / "adapter_config.json").write_text(json.dumps(_config(number, rng, bases)))
        if number % 100 == 4:
            (repo / "adapter_model.bin").write_bytes(rng.randbytes(500))
        else:
            _write_weights(repo / "adapter_model.safetensors", number)
        if number % 100 == 2:
            (repo / "adapter_model.safetensors").write_bytes(rng.randbytes(2000))


def _config(number: int, rng: random.Random, bases: int) -> dict[str, object]:
    """No two configs are alike: a crawl cannot save requests on them."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": f"acme/base-{number % bases}",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": rng.random(),
        "target_modules": list(MODULES),
    }


def _write_weights(path: Path, number: int) -> None:
    rng = np.random.default_rng(number)
    tensors = {}
    for layer in range(2):
        for module in MODULES:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = rng.normal(size=(4, 64)).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = rng.normal(size=(64, 4)).astype(np.float32)
    save_file(tensors, path, metadata={"format": "pt"})

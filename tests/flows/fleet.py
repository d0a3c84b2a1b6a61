"""A folder of adapters for the deployment tests; the processes are `benchmarks.fleet`'s."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.fleet import Fleet, running_fleet, wait_for

__all__ = ["Fleet", "running_fleet", "wait_for", "write_adapter"]


def write_adapter(folder: Path, seed: int) -> None:
    """A tiny adapter as PEFT saves it."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = rng.normal(size=(4, 16)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = rng.normal(size=(16, 4)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "base_model_name_or_path": "acme/tiny-base",
        "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))

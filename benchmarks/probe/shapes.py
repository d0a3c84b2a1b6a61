"""Sizes of real decoders, and adapters for them that were not trained: speed does not ask what was learnt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks.probe.jobs import CONFIG, WEIGHTS

__all__ = ["RANK", "SHAPES", "Shape", "write_adapter"]

RANK = 16


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, from its public config.json."""

    name: str
    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    tied: bool
    """Whether the output layer is the embedding."""

    @property
    def config(self) -> dict[str, Any]:
        """What its config.json says, as far as speed depends on it."""
        return {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.mlp,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 4_096,
            "rms_norm_eps": 1e-6,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": 0,
        }

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Module name to (out, in): all seven of each layer."""
        kv = self.kv_heads * self.hidden // self.heads
        of_layer = {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.mlp, self.hidden),
            "mlp.up_proj": (self.mlp, self.hidden),
            "mlp.down_proj": (self.hidden, self.mlp),
        }
        return {f"model.layers.{n}.{name}": size for n in range(self.layers) for name, size in of_layer.items()}


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", "qwen2", 2, 64, 4, 2, 160, 2_048, True),
        Shape("llama-100m", "llama", 16, 768, 12, 4, 2_048, 2_048, True),
        Shape("qwen2.5-1.5b", "qwen2", 28, 1_536, 12, 2, 8_960, 151_936, True),
        Shape("qwen2.5-7b", "qwen2", 28, 3_584, 28, 4, 18_944, 152_064, False),
    )
}


def write_adapter(folder: Path, shape: Shape, seed: int) -> Path:
    """Rank 16 on all seven projections, float32, as PEFT saves it; A as PEFT starts it, B small and random."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, (out, into) in shape.projections.items():
        a = (2 * rng.random((RANK, into), dtype=np.float32) - 1) / np.float32(into**0.5)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        b = np.float32(0.02) * rng.standard_normal((out, RANK), dtype=np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {
        "base_model_name_or_path": shape.name,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted({name.rpartition(".")[2] for name in shape.projections}),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder

"""Seeded adapters as PEFT saves them, written module by module: memory stays at one module at any size."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from benchmarks.weights.bare import WEIGHTS
from benchmarks.weights.shapes import DTYPES, Case
from scanner.adapter import CONFIG_NAME

__all__ = ["write_adapter"]

_CODES = {"fp32": "F32", "bf16": "BF16"}
DECAY = 1.0
"""Singular value i of B falls as i to the minus this: from 1 to 1/16 at rank 16, like a trained adapter's."""


def write_adapter(folder: Path, case: Case, seed: int = 0) -> Path:
    """Write weights and config into a new folder; returns the weight file, synced to disk.

    A is what PEFT starts from (uniform in ±1/√in); B is a Gaussian [out, r] with a falling spectrum, mixed by a
    rotation, at the size that training leaves (entries around 0.01).
    """
    folder.mkdir(parents=True)
    (folder / CONFIG_NAME).write_text(json.dumps(_config(case), indent=2) + "\n", encoding="utf-8")
    path = folder / WEIGHTS
    with path.open("wb") as stream:
        _write_header(stream, case)
        for values in _tensors(case, seed):
            stream.write(_encode(values, case.dtype))
        stream.flush()
        os.fsync(stream.fileno())  # no write-back while something is measured
    return path


def _config(case: Case) -> dict[str, Any]:
    return {
        "base_model_name_or_path": case.shape.base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 2 * case.rank,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": case.rank,
        "target_modules": sorted(name.split(".")[-1] for name in case.shape.projections),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def _write_header(stream: BinaryIO, case: Case) -> None:
    """Tensors in the order of their names, as the safetensors library writes them."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for module, (out, into) in case.modules.items():
        for side, dimensions in (("A", [case.rank, into]), ("B", [out, case.rank])):
            end = at + dimensions[0] * dimensions[1] * DTYPES[case.dtype]
            header[f"base_model.model.{module}.lora_{side}.weight"] = {
                "dtype": _CODES[case.dtype],
                "shape": dimensions,
                "data_offsets": [at, end],
            }
            at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)


def _tensors(case: Case, seed: int) -> Iterator[npt.NDArray[np.float32]]:
    """A [r, in] and B [out, r] of each module in turn, float32."""
    spectrum = 0.01 * np.arange(1, case.rank + 1, dtype=np.float32) ** np.float32(-DECAY)
    for number, (out, into) in enumerate(case.modules.values()):
        rng = np.random.default_rng([seed, number])
        yield (2 * rng.random((case.rank, into), dtype=np.float32) - 1) / np.float32(into**0.5)
        rotation = np.linalg.qr(rng.standard_normal((case.rank, case.rank)))[0].astype(np.float32)
        size = np.float32(rng.uniform(0.5, 2.0))  # modules differ in how far they moved
        yield size * rng.standard_normal((out, case.rank), dtype=np.float32) @ (spectrum[:, None] * rotation)


def _encode(values: npt.NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "fp32":
        return values.astype("<f4", copy=False).tobytes()
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # to nearest, ties to even
    return (rounded >> np.uint32(16)).astype("<u2").tobytes()

"""Features of real adapters against the dense ΔW in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense import dense_features, hoyer

from scanner.adapter import open_weights, parse_config, read_json_object, view_adapter
from scanner.weights import scan_weights

REAL = (
    "0112LY__logo-gemma-lora__1/adapter_model.safetensors",
    "BK7195__deltacompression-poc__1/adapter_model.safetensors",
    "Kuntya__Udacity__1/adapter_model.safetensors",
    "SARAELSAFTY__Movies-_with_lora__1/adapter_model.safetensors",
    "Tashu014__lora-imdb-distilbert__1/adapter_model.safetensors",
    "TheSotti__Lightweight-Fine-Tuning-to-FM__1/adapter_model.bin",
    "anirudh-ak__peft-gpt2__1/adapter_model.safetensors",
    "ao-wei__gemma3-270m-svg-lora-partb__1/adapter_model.safetensors",
    "branbot6__sift-opf-zh__1/adapter_model.safetensors",
    "catundchat__stable-diffusion-v1.5-lora__1/pytorch_lora_weights.safetensors",
    "guilhermmeabreu__lab_08__1/adapter_model.safetensors",
    "timohavdk__sd-lora__1/pytorch_lora_weights.safetensors",
    "timohavdk__sd-lora__2/new.safetensors",
    "wujindou__BLOOM-LORA__1/adapter_model.bin",
    "wyek1n__MLX-CLI__1/adapters.safetensors",
)
MODULES_COMPARED = 4  # spread over the depth; every dense product costs more than the whole scan
LARGEST_SVD, LARGEST_GRAM, MOST_ENTRIES = 400_000, 1_024, 10**9


@pytest.mark.parametrize("name", REAL)
def test_real_adapters_match_the_dense_product(data_dir: Path, name: str) -> None:
    path = data_dir / "adapters" / name
    config_path = path.with_name("adapter_config.json")
    config = parse_config(read_json_object(config_path, 10**6)) if config_path.exists() else None
    view = view_adapter(open_weights([path], path.name), config, 4096)
    assert view.unsupported_reason == ""
    assert view.updates
    entries = sum(low_rank.out_features * low_rank.in_features for low_rank in view.updates)
    scan = scan_weights(view.updates, full=entries < MOST_ENTRIES)
    assert len(scan.modules) == len(view.updates)
    step = max(1, len(view.updates) // MODULES_COMPARED)
    for module, low_rank in list(zip(scan.modules, view.updates, strict=True))[::step]:
        a, b = low_rank.read()
        if not b.any():  # one of them was published before it was trained
            assert module.features["frobN"] == module.features["sv_max"] == module.features["norm_B"] == 0.0
            continue
        wanted = affordable_features(a, b, low_rank.scale)
        for feature in set(wanted) & set(module.features):
            value = wanted[feature]
            assert module.features[feature] == pytest.approx(value, rel=1e-6, abs=1e-12), (module.module, feature)


def affordable_features(a: Any, b: Any, scale: float) -> dict[str, float | None]:
    """The dense product in float64; its SVD, its Gram matrix or its norm alone, by what a test can wait for."""
    n_out, n_in = b.shape[0], a.shape[1]
    if n_out * n_in <= LARGEST_SVD:
        return dense_features(a, b, scale)
    b64, a64 = b.astype(np.float64), a.astype(np.float64)
    rows, columns = np.empty(n_out), np.zeros(n_in)
    for i in range(0, n_out, 2048):
        squares = (b64[i : i + 2048] @ a64) ** 2
        rows[i : i + 2048] = squares.sum(1)
        columns += squares.sum(0)
    energy = float(rows.sum())
    frob = math.sqrt(energy)
    known: dict[str, float | None] = {
        "frobN": frob / math.sqrt(n_in * n_out),
        "delta_frob": abs(scale) * frob,
        "row_top8_energy": float(np.sort(rows)[-8:].sum()) / energy,
        "row_hoyer": hoyer(np.sqrt(rows)),
        "col_top8_energy": float(np.sort(columns)[-8:].sum()) / energy,
        "col_hoyer": hoyer(np.sqrt(columns)),
        "norm_A": float(np.linalg.norm(a64)),
        "norm_B": float(np.linalg.norm(b64)),
    }
    if min(n_in, n_out) > LARGEST_GRAM:
        return known
    product = b64 @ a64
    gram = product @ product.T if n_out <= n_in else product.T @ product
    top = float(np.linalg.eigvalsh(gram)[-1])
    return known | {
        "stable_rank": energy / top if top > 0 else 0.0,
        "top1_energy": top / energy if energy > 0 else 0.0,
    }

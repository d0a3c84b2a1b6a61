"""Features from the r×r core against the dense ΔW, which is what the paper computes."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.adapter import LowRankUpdate, open_weights, parse_config, read_json_object, view_adapter
from scanner.weights import FEATURE_VERSION, scan_weights, singular_values
from scanner.weights.features import BLOCK_VALUES, triangle

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**32 - 1)


def update(a: Any, b: Any, scale: float = 1.0, module: str = "layers.0.q_proj") -> LowRankUpdate:
    return LowRankUpdate(module, a.shape[0], b.shape[0], a.shape[1], scale, lambda: (a, b))


def dense_features(a: Any, b: Any, scale: float) -> dict[str, float]:
    """The definitions, on the dense product in float64."""
    product = b.astype(np.float64) @ a.astype(np.float64)
    sigma = np.linalg.svd(product, compute_uv=False)
    energy = float((sigma**2).sum())
    return {
        "frobN": float(np.linalg.norm(product)) / math.sqrt(product.size),
        "delta_frob": float(np.linalg.norm(scale * product)),
        "stable_rank": energy / float(sigma[0]) ** 2 if sigma[0] > 0 else 0.0,
        "top1_energy": float(sigma[0]) ** 2 / energy if energy > 0 else 0.0,
        "row_top8_energy": float(np.sort((product**2).sum(1))[-8:].sum()) / energy if energy > 0 else 0.0,
    }


@given(sizes, sizes, sizes, seeds, st.floats(-4, 4))
@settings(deadline=None)
def test_module_features_equal_the_dense_ones(rank: int, n_out: int, n_in: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rank, n_in)), rng.normal(size=(n_out, rank))
    (module,) = scan_weights([update(a, b, scale)]).modules
    wanted = dense_features(a, b, scale)
    # Rows are summed in float32: a share needs no more.
    assert module.features.pop("row_top8_energy") == pytest.approx(wanted.pop("row_top8_energy"), rel=1e-5)
    assert module.features == pytest.approx(wanted, rel=1e-9)


@given(sizes, sizes, sizes, seeds)
@settings(deadline=None)
def test_singular_values_equal_the_dense_ones(rank: int, n_out: int, n_in: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rank, n_in)), rng.normal(size=(n_out, rank))
    got, wanted = singular_values(a, b), np.linalg.svd(b @ a, compute_uv=False)
    n = min(len(got), len(wanted))
    np.testing.assert_allclose(got[:n], wanted[:n], rtol=1e-9, atol=1e-12 * wanted[0])
    np.testing.assert_allclose(wanted[n:], 0, atol=1e-12 * wanted[0])
    assert (np.diff(got) <= 0).all()


@given(st.integers(1, 6), seeds, st.floats(0.1, 5))
@settings(deadline=None)
def test_ours_see_only_delta_w(rank: int, seed: int, scale: float) -> None:
    """A → GA, B → BG⁻¹ keeps ΔW, so an attacker who re-parametrises the factors changes nothing that we measure."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rank, 9)), rng.normal(size=(7, rank))
    q, _ = np.linalg.qr(rng.normal(size=(rank, rank)))
    gauge = q @ np.diag(rng.uniform(0.2, 5, size=rank)) @ np.linalg.qr(rng.normal(size=(rank, rank)))[0]
    plain = scan_weights([update(a, b, scale)])
    moved = scan_weights([update(gauge @ a, b @ np.linalg.inv(gauge), scale)])
    ours = [name for name in plain.features if name.startswith("delta_")]
    assert len(ours) == 4
    for name in ours:
        assert moved.features[name] == pytest.approx(plain.features[name], rel=1e-8)


@given(seeds, st.floats(0.1, 10))
@settings(deadline=None)
def test_scale_moved_into_the_factors_changes_only_the_papers_features(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(3, 9)), rng.normal(size=(7, 3))
    outside, inside = scan_weights([update(a, b, scale)]).features, scan_weights([update(a, scale * b)]).features
    for name, value in outside.items():
        factor = scale if name.startswith(("global_frobN", "attn_frobN")) else 1.0
        assert inside[name] == pytest.approx(value * factor, rel=1e-9)  # the paper never applies α/r


def test_papers_aggregates() -> None:
    rng = np.random.default_rng(5)
    names = ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj", "other"]
    updates = [
        update(rng.normal(size=(2, 8)) * (i + 1), rng.normal(size=(6, 2)), 3.0, f"layers.{i}.{name}")
        for i, name in enumerate(names)
    ]
    frob = np.array([np.linalg.norm(b @ a) / math.sqrt(48) for a, b in (u.read() for u in updates)])
    features = scan_weights(updates).features
    assert features["global_frobN_mean"] == pytest.approx(frob.mean())
    assert features["global_frobN_std"] == pytest.approx(math.sqrt(((frob - frob.mean()) ** 2).mean()))  # population
    assert features["global_frobN_max"] == pytest.approx(frob.max())
    assert features["global_frobN_min"] == pytest.approx(frob.min())
    assert features["global_max_over_mean_sv"] == pytest.approx(frob.max() / frob.mean())
    assert features["attn_frobN_mean"] == pytest.approx(frob[:3].mean())
    assert features["mlp_frobN_mean"] == pytest.approx(frob[3:5].mean())
    assert features["attn_mlp_frobN_ratio"] == pytest.approx(frob[:3].mean() / frob[3:5].mean())
    assert scan_weights(updates).version == FEATURE_VERSION


def test_untrained_adapter_has_zero_features_not_nan() -> None:
    a, b = np.random.default_rng(0).normal(size=(4, 8)), np.zeros((6, 4))
    scan = scan_weights([update(a, b), update(a, b, module="layers.0.up_proj")])
    assert set(scan.modules[0].features.values()) == {0.0}
    assert scan.features["global_frobN_mean"] == 0.0
    assert scan.features["global_max_over_mean_sv"] is None  # 0/0
    assert "attn_mlp_frobN_ratio" not in scan.features


def test_rank_deficient_factors() -> None:
    rng = np.random.default_rng(1)
    a, b = np.repeat(rng.normal(size=(1, 8)), 4, axis=0), rng.normal(size=(6, 4))
    (module,) = scan_weights([update(a, b)]).modules
    assert module.features["stable_rank"] == pytest.approx(1.0)
    assert module.features["top1_energy"] == pytest.approx(1.0)


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 200), st.sampled_from(["f4", "f8"]), seeds)
@settings(deadline=None)
def test_blocks_give_the_triangle_of_the_whole(n: int, rank: int, block_values: int, dtype: str, seed: int) -> None:
    tall = np.random.default_rng(seed).normal(size=(n, rank)).astype(dtype)
    whole = np.linalg.qr(tall.astype(np.float64)).R
    blocked = triangle(tall, block_values)
    assert blocked.shape == whole.shape
    # R is unique up to the signs of its rows.
    scale = np.abs(whole).max()
    np.testing.assert_allclose(np.abs(blocked), np.abs(whole), rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(blocked.T @ blocked, whole.T @ whole, rtol=0, atol=1e-10 * scale**2)
    wanted = np.linalg.svd(whole, compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(blocked, compute_uv=False), wanted, rtol=1e-10, atol=1e-13 * wanted[0])


@pytest.mark.parametrize("row", [0, 50, 99])
def test_a_value_that_is_not_finite_is_seen_in_any_block(row: int) -> None:
    tall = np.ones((100, 3))
    tall[row, 1] = math.inf
    assert np.isnan(triangle(tall, 30)).all()


def test_a_wide_factor_needs_a_blocks_memory() -> None:
    a, b = np.ones((4, 1_500_000), np.float32), np.ones((2, 4), np.float32)  # 24 MB; 48 MB as float64
    tracemalloc.start()
    try:
        scan_weights([update(a, b)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * 8 * BLOCK_VALUES
    assert singular_values(a, b)[0] == pytest.approx(math.sqrt(2 * 1_500_000) * 4)


def test_small_singular_values_survive() -> None:
    # A Gram matrix squares the condition number and would lose 1e-9 beside 1.
    a, b = np.eye(2, 5), np.eye(4, 2) @ np.diag([1.0, 1e-9])
    np.testing.assert_allclose(singular_values(a, b), [1.0, 1e-9], rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["a", "b"])
def test_non_finite_factors_give_null_features(bad: float, side: str) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 5)), rng.normal(size=(3, 2))
    (a if side == "a" else b)[0, 0] = bad
    good = update(rng.normal(size=(2, 5)), rng.normal(size=(3, 2)), module="layers.1.q_proj")
    scan = scan_weights([update(a, b), good])
    assert set(scan.modules[0].features.values()) == {None}
    assert None not in scan.modules[1].features.values()
    assert set(scan.features.values()) == {None}


@pytest.mark.parametrize("size", [1e300, 1e154, 1e100])
def test_finite_factors_whose_product_overflows_give_null_features(size: float) -> None:
    scan = scan_weights([update(np.full((2, 3), size), np.full((3, 2), size))])
    assert set(scan.modules[0].features.values()) == {None}
    assert set(scan.features.values()) == {None}


def test_an_infinite_scale_gives_null_not_infinity() -> None:
    features = scan_weights([update(np.ones((1, 2)), np.ones((2, 1)), math.inf)]).features
    assert features["delta_frob_total"] is None
    assert features["global_frobN_mean"] == pytest.approx(1.0)


def test_no_updates() -> None:
    assert scan_weights([]).features == {}


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
LARGEST_SVD, LARGEST_GRAM = 400_000, 1_024


@pytest.mark.parametrize("name", REAL)
def test_real_adapters_match_the_dense_product(data_dir: Path, name: str) -> None:
    path = data_dir / "adapters" / name
    config_path = path.with_name("adapter_config.json")
    config = parse_config(read_json_object(config_path, 10**6)) if config_path.exists() else None
    view = view_adapter(open_weights([path], path.name), config, 4096)
    assert view.unsupported_reason == ""
    assert view.updates
    scan = scan_weights(view.updates)
    assert len(scan.modules) == len(view.updates)
    step = max(1, len(view.updates) // MODULES_COMPARED)
    for module, low_rank in list(zip(scan.modules, view.updates, strict=True))[::step]:
        a, b = low_rank.read()
        for feature, value in affordable_features(a, b, low_rank.scale).items():
            assert module.features[feature] == pytest.approx(value, rel=1e-6, abs=1e-12), (module.module, feature)


def affordable_features(a: Any, b: Any, scale: float) -> dict[str, float]:
    """The dense product in float64; its SVD, its Gram matrix or its norm alone, by what a test can wait for."""
    n_out, n_in = b.shape[0], a.shape[1]
    if n_out * n_in <= LARGEST_SVD:
        return dense_features(a, b, scale)
    b64, a64 = b.astype(np.float64), a.astype(np.float64)
    energy = sum(float(np.sum((b64[i : i + 2048] @ a64) ** 2)) for i in range(0, n_out, 2048))
    frob = math.sqrt(energy)
    known = {"frobN": frob / math.sqrt(n_in * n_out), "delta_frob": abs(scale) * frob}
    if min(n_in, n_out) > LARGEST_GRAM:
        return known
    product = b64 @ a64
    gram = product @ product.T if n_out <= n_in else product.T @ product
    top = float(np.linalg.eigvalsh(gram)[-1])
    return known | {
        "stable_rank": energy / top if top > 0 else 0.0,
        "top1_energy": top / energy if energy > 0 else 0.0,
    }


def test_the_adapter_is_walked_module_by_module() -> None:
    """Factors are read when their module's turn comes: an adapter larger than memory can be scanned."""
    reads: list[str] = []

    def lazily(name: str) -> LowRankUpdate:
        def read() -> tuple[Any, Any]:
            reads.append(name)
            return np.ones((1, 2)), np.ones((2, 1))

        return LowRankUpdate(name, 1, 2, 2, 1.0, read)

    def stream() -> Any:
        for name in ("one", "two"):
            yield lazily(name)
            assert reads[-1] == name

    scan_weights(stream())
    assert reads == ["one", "two"]

"""Features from the r×r core against the dense ΔW, which is what the paper computes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense import dense_features, hoyer, update
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.adapter import LowRankUpdate
from scanner.weights import FEATURE_VERSION, MODULE_FEATURES, measure_adapter, scan_weights
from scanner.weights.definition import Gauge
from scanner.weights.per_adapter import ADAPTER
from scanner.weights.per_module import MODULE

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**32 - 1)


def assert_agrees(found: dict[str, float | None], wanted: dict[str, float | None], rel: float) -> None:
    for name, value in wanted.items():
        has = found[name]
        if value is None:
            assert has is None, name
        else:
            # Where everything cancels (an entropy of rank 1, an even row) there is no relative precision to be had.
            assert has == pytest.approx(value, rel=rel, abs=1e-9 * max(1.0, wanted["norm_A"] or 0.0)), name


@given(sizes, sizes, sizes, seeds, st.floats(0.1, 4), st.sampled_from(["f4", "f8"]))
@settings(deadline=None)
def test_module_features_equal_the_dense_ones(
    rank: int, n_out: int, n_in: int, seed: int, scale: float, dtype: str
) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rank, n_in)).astype(dtype), rng.normal(size=(n_out, rank)).astype(dtype)
    (module,) = scan_weights([update(a, b, -scale)], full=True).modules
    assert set(module.features) == set(MODULE_FEATURES)
    wanted = dense_features(a, b, -scale)
    assert set(wanted) == set(MODULE_FEATURES) - {"energy_share"}
    assert module.features["energy_share"] == pytest.approx(1.0)
    if n_out * n_in == 1:
        wanted |= {"kurtosis": module.features["kurtosis"], "kurtosis_five": module.features["kurtosis_five"]}  # 0/0
    # float32 factors are summed over rows in float32 where that costs next to nothing.
    assert_agrees(module.features, wanted, 1e-6 if dtype == "f4" else 1e-8)


@given(
    st.integers(1, 48),
    seeds,
    st.sampled_from(["C", "F"]),
    st.floats(0, 3),
    st.floats(0, 1.5),
    st.sampled_from([0.0, 0.0, 3.0, 1e3]),
)
@settings(deadline=None, max_examples=40)
def test_wide_float32_factors_keep_six_digits(
    rank: int, seed: int, order: Any, tilt: float, decay: float, gauge: float
) -> None:
    """Sums over thousands of rows, in float32 where that is safe, in either memory order (MLX's is the other one)."""
    rng = np.random.default_rng(seed)

    def mixed() -> Any:  # a falling spectrum behind a rotation: the conditions on both sides of the switch
        return np.linalg.qr(rng.normal(size=(rank, rank)))[0] * np.arange(1.0, rank + 1) ** -decay

    a = np.asarray(mixed() @ rng.normal(size=(rank, 2_100)) * rng.uniform(0.1, 1, 2_100) ** tilt, "f4", order=order)
    b = np.asarray(
        rng.normal(size=(1_700, rank)) @ mixed() * rng.uniform(0.1, 1, (1_700, 1)) ** tilt, "f4", order=order
    )
    if gauge:  # large factors whose product is small: everything cancels
        g = np.eye(rank) + gauge * rng.normal(size=(rank, rank))
        a = np.asarray(g @ a, "f4", order=order)
        b = np.asarray(b @ np.linalg.inv(g), "f4", order=order)
    (module,) = scan_weights([update(a, b, 0.5)]).modules
    squares = (b.astype("f8") @ a.astype("f8")) ** 2
    rows, columns = squares.sum(1), squares.sum(0)
    assert module.features["row_hoyer"] == pytest.approx(hoyer(np.sqrt(rows)), rel=1e-6)
    assert module.features["col_hoyer"] == pytest.approx(hoyer(np.sqrt(columns)), rel=1e-6)
    assert module.features["row_top8_energy"] == pytest.approx(np.sort(rows)[-8:].sum() / rows.sum(), rel=1e-6)
    assert module.features["col_top8_energy"] == pytest.approx(np.sort(columns)[-8:].sum() / rows.sum(), rel=1e-6)
    assert module.features["frobN"] == pytest.approx(math.sqrt(rows.sum() / 2_100 / 1_700), rel=1e-9)


@given(st.integers(1, 24), st.sampled_from([16, 64, 300]), seeds, st.sampled_from([1e-2, 1e-4, 1e-6]))
@settings(deadline=None, max_examples=40)
def test_badly_conditioned_float32_factors_keep_six_digits(rank: int, size: int, seed: int, spread: float) -> None:
    """Factors whose directions almost coincide, and a spectrum down to 1e-4 of the largest value."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(rank, 1)) + spread * rng.normal(size=(rank, rank))
    a = (mix @ rng.normal(size=(rank, size))).astype(np.float32)
    b = (rng.normal(size=(size, rank)) * np.geomspace(1, 1e-3, rank)).astype(np.float32)
    (module,) = scan_weights([update(a, b)]).modules
    sigma = np.linalg.svd(b.astype(np.float64) @ a.astype(np.float64), compute_uv=False)[: min(rank, size)]
    wanted = dense_features(a, b, 1.0)
    for name in ("frobN", "delta_frob", "sv_max", "stable_rank", "top1_energy", "pr", "entropy", "energy_entropy"):
        assert module.features[name] == pytest.approx(wanted[name], rel=1e-6, abs=1e-7), name
    for name in ("row_top8_energy", "col_top8_energy", "row_hoyer", "col_hoyer"):
        assert module.features[name] == pytest.approx(wanted[name], rel=1e-6, abs=1e-7), name
    if sigma[-1] > 1e-4 * sigma[0]:
        assert module.features["sv_min"] == pytest.approx(float(sigma[-1]), rel=1e-6)


def singular_values(a: Any, b: Any) -> Any:
    (module,) = measure_adapter([update(a, b)]).modules
    return module.sigma


@given(sizes, sizes, sizes, seeds)
@settings(deadline=None)
def test_singular_values_equal_the_dense_ones(rank: int, n_out: int, n_in: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rank, n_in)), rng.normal(size=(n_out, rank))
    got, wanted = singular_values(a, b), np.linalg.svd(b @ a, compute_uv=False)
    assert len(got) == min(rank, n_out, n_in)
    np.testing.assert_allclose(got, wanted[: len(got)], rtol=1e-9, atol=1e-12 * wanted[0])
    np.testing.assert_allclose(wanted[len(got) :], 0, atol=1e-12 * wanted[0])
    assert (np.diff(got) <= 0).all()


NAMES = ("q_proj", "o_proj", "up_proj", "down_proj")


def several(seed: int, rank: int, change: Any = lambda a, b, s: (a, b, s)) -> list[LowRankUpdate]:
    """Two layers of four modules; `change` is made to each."""
    rng = np.random.default_rng(seed)
    updates = []
    for layer in range(2):
        for name in NAMES:
            part = "self_attn" if name in ("q_proj", "o_proj") else "mlp"
            a, b, s = change(rng.normal(size=(rank, 9)), rng.normal(size=(12, rank)), float(rng.uniform(0.5, 2)))
            updates.append(update(a, b, s, f"layers.{layer}.{part}.{name}"))
    return updates


def declared(*gauges: Gauge) -> set[str]:
    return {f.name for f in (*MODULE.features.values(), *ADAPTER.features.values()) if f.gauge in gauges}


def changed(seed: int, rank: int, change: Any) -> set[str]:
    """Names of features that a change of the factors moves."""
    before = scan_weights(several(seed, rank), full=True)
    after = scan_weights(several(seed, rank, change), full=True)
    moved = set()
    for old, new in [
        (before.features, after.features),
        *((o.features, n.features) for o, n in zip(before.modules, after.modules, strict=True)),
    ]:
        for name, value in old.items():
            if value is None or new[name] is None:
                assert value is None and new[name] is None, name
            elif new[name] != pytest.approx(value, rel=1e-7, abs=1e-10):
                moved.add(name)
    return moved


@given(st.integers(2, 6), seeds)
@settings(deadline=None, max_examples=30)
def test_a_gauge_change_moves_only_what_is_declared(rank: int, seed: int) -> None:
    """A → GA, B → BG⁻¹ keeps ΔW: an attacker who re-parametrises the factors changes nothing else that we measure."""

    def gauge(a: Any, b: Any, s: float) -> Any:
        rng = np.random.default_rng(int(abs(a[0, 0]) * 1e9))
        q, w = (np.linalg.qr(rng.normal(size=(rank, rank)))[0] for _ in range(2))
        g = q @ np.diag(rng.uniform(0.2, 5, size=rank)) @ w
        return g @ a, b @ np.linalg.inv(g), s

    moved = changed(seed, rank, gauge)
    assert moved <= declared(Gauge.FACTORS)
    assert {"asym", "norm_A", "norm_B", "global_asym_mean"} <= moved


@given(st.integers(2, 6), seeds, st.floats(1.5, 5))
@settings(deadline=None, max_examples=30)
def test_a_scale_hidden_in_alpha_moves_only_what_is_declared(rank: int, seed: int, by: float) -> None:
    moved = changed(seed, rank, lambda a, b, s: (a, b / by, s * by))
    assert moved <= declared(Gauge.FACTORS, Gauge.PRODUCT)  # the paper never applies α/r
    assert {"frobN", "global_frobN_mean", "sv_max"} <= moved


@given(st.integers(2, 6), seeds, st.floats(1.5, 5))
@settings(deadline=None, max_examples=30)
def test_the_size_of_the_update_moves_only_what_is_declared(rank: int, seed: int, by: float) -> None:
    moved = changed(seed, rank, lambda a, b, s: (a, b, s * by))
    assert moved == declared(Gauge.UPDATE)


@given(st.integers(1, 5), seeds)
@settings(deadline=None, max_examples=30)
def test_inert_rank_moves_nothing_of_ours(rank: int, seed: int) -> None:
    """Rows of A whose columns of B are zero: the declared rank grows, ΔW stays."""

    def pad(a: Any, b: Any, s: float) -> Any:
        return np.vstack([a, np.ones((2, 9))]), np.hstack([b, np.zeros((12, 2))]), s

    before, after = scan_weights(several(seed, rank), full=True), scan_weights(several(seed, rank, pad), full=True)
    ours = {f.name for f in (*MODULE.features.values(), *ADAPTER.features.values()) if f.source == "lorascope"}
    pairs = [(before.features, after.features), (before.modules[3].features, after.modules[3].features)]
    for old, new in pairs:
        for name in ours & set(old):
            assert new[name] == pytest.approx(old[name], rel=1e-7, abs=1e-10), name


def test_papers_aggregates() -> None:
    """Both notebook families on modules whose features are computed densely, aggregated by hand."""
    rng = np.random.default_rng(5)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "other"]
    updates = [
        update(rng.normal(size=(2, 8)) * (i + 1), rng.normal(size=(6, 2)), 3.0, f"layers.{i}.{name}")
        for i, name in enumerate(names)
    ]
    dense = [dense_features(*u.read(), 3.0) for u in updates]
    x = {name: np.array([d[name] for d in dense], dtype=np.float64) for name in dense[0]}
    attn, mlp, rest = slice(0, 4), slice(4, 7), slice(4, 8)
    frob = x["frobN"]
    wanted = {
        "global_frobN_mean": frob.mean(),
        "global_frobN_std": math.sqrt(((frob - frob.mean()) ** 2).mean()),  # population
        "global_frobN_max": frob.max(),
        "global_frobN_min": frob.min(),
        "global_max_over_mean_sv": frob.max() / frob.mean(),
        "global_entropy_mean": x["entropy"].mean(),
        "global_entropy_std": x["entropy"].std(),
        "global_pr_mean": x["pr"].mean(),
        "global_pr_std": x["pr"].std(),
        "global_asym_mean": x["asym"].mean(),
        "global_asym_std": x["asym"].std(),
        "attn_frobN_mean": frob[attn].mean(),
        "mlp_frobN_mean": frob[mlp].mean(),
        "attn_mlp_frobN_ratio": frob[attn].mean() / frob[mlp].mean(),
        "attn_entropy_mean": x["entropy"][attn].mean(),
        "mlp_entropy_mean": x["entropy"][mlp].mean(),
        **{f"{name}_frobN_mean": frob[i] for i, name in enumerate(names[:7])},
        "nb10_entropy_mean": x["entropy_norm"].mean(),
        "nb10_entropy_min": x["entropy_norm"].min(),
        "nb10_pr_min": x["pr"].min(),
        "nb10_asym_mean": x["asym_ln"].mean(),
        "nb10_asym_std": x["asym_ln"].std(),
        "nb10_asym_max_abs": np.abs(x["asym_ln"]).max(),
        "nb10_sv_max_over_mean_max": x["sv_max_over_mean"].max(),
        "nb10_sv_max_over_sum_max": x["sv_max_over_sum"].max(),
        "nb10_attn_entropy_mean": x["entropy_norm"][attn].mean(),
        "nb10_mlp_entropy_mean": x["entropy_norm"][rest].mean(),
        "nb10_attn_sv_max_over_mean_max": x["sv_max_over_mean"][attn].max(),
        "nb10_mlp_sv_max_over_mean_max": x["sv_max_over_mean"][rest].max(),
        "nb10_mlp_frobN_mean": frob[rest].mean(),
        "nb10_attn_mlp_frobN_ratio": frob[attn].mean() / frob[rest].mean(),
    }
    scan = scan_weights(updates)
    papers = {f.name for f in ADAPTER.features.values() if f.source != "lorascope"}
    assert papers == set(wanted)
    for name, value in wanted.items():
        assert scan.features[name] == pytest.approx(float(value), rel=1e-9), name
    assert scan.version == FEATURE_VERSION


def test_our_aggregates() -> None:
    updates = several(3, 3)
    energy = np.array([np.sum((u.scale * (u.read()[1] @ u.read()[0])) ** 2) for u in updates])
    layer = np.array([energy[:4].sum(), energy[4:].sum()]) / energy.sum()
    features = scan_weights(updates).features
    attention, mlp = energy[[0, 1, 4, 5]].sum(), energy[[2, 3, 6, 7]].sum()
    assert features["delta_attn_mlp_energy_ratio"] == pytest.approx(attention / mlp)
    assert features["delta_frob_total"] == pytest.approx(math.sqrt(energy.sum()))
    assert features["delta_layer_center"] == pytest.approx(layer[1])
    assert features["delta_layer_spread"] == pytest.approx(math.sqrt(layer[0] * layer[1]))
    assert features["delta_layer_top_share"] == pytest.approx(layer.max())
    first = [np.linalg.svd(u.read()[1] @ u.read()[0])[0][:, 0] for u in updates]
    expected = math.sqrt(2 / (math.pi * 12))
    assert features["delta_attn_writer_coherence"] == pytest.approx(abs(first[1] @ first[5]) / expected, rel=1e-5)
    assert features["delta_mlp_writer_coherence"] == pytest.approx(abs(first[3] @ first[7]) / expected, rel=1e-5)


def test_the_rank_ablation_record_keeps_the_identities_of_its_definitions(data_dir: Path) -> None:
    """The record has aggregates only: what its definitions imply among them must hold with ours."""
    records = json.loads((data_dir / "paper" / "detection_weight_rank_ablation_v1.json").read_text())
    assert len(records) == 12
    for record in records:
        projections = record["per_proj_frobN_mean"]
        attention = [projections[f"{name}_proj"] for name in "qkvo"]
        mlp = [projections[f"{name}_proj"] for name in ("gate", "up", "down")]
        # A stand-in with one module a projection, each of the recorded size, has the recorded means.
        stand_in = [
            update(np.ones((1, 1)), np.full((1, 1), value), module=f"layers.0.{name}")
            for name, value in projections.items()
        ]
        features = scan_weights(stand_in).features
        assert features["global_frobN_mean"] == pytest.approx(record["global_frobN_mean"], rel=1e-9)
        assert features["attn_frobN_mean"] == pytest.approx(record["attn_frobN_mean"], rel=1e-9)
        assert features["mlp_frobN_mean"] == pytest.approx(record["mlp_frobN_mean"], rel=1e-9)
        assert features["attn_mlp_frobN_ratio"] == pytest.approx(record["attn_mlp_frobN_ratio"], rel=1e-9)
        assert np.mean(attention) / np.mean(mlp) == pytest.approx(record["attn_mlp_frobN_ratio"], rel=1e-9)
        ratio = record["global_frobN_max"] / record["global_frobN_mean"]
        assert record["global_max_over_mean_sv"] == pytest.approx(ratio, rel=1e-9)
        # Nats of amplitudes of r values: between 0 and ln r, and above what a participation ratio needs at least.
        rank = int(record["adapter_path"].rpartition("rank")[2])
        assert math.log(record["global_pr_mean"]) <= record["global_entropy_mean"] <= math.log(rank)


def test_untrained_adapter_has_zero_features_not_nan() -> None:
    a, b = np.random.default_rng(0).normal(size=(4, 8)), np.zeros((6, 4))
    scan = scan_weights([update(a, b), update(a, b, module="layers.0.up_proj")])
    zero = ("frobN", "delta_frob", "stable_rank", "top1_energy", "entropy", "energy_entropy", "pr", "sv_max", "sv_min")
    assert {scan.modules[0].features[name] for name in (*zero, "row_top8_energy", "col_hoyer", "norm_B")} == {0.0}
    nothing = ("asym", "asym_ln", "sv_max_over_mean", "sv_max_over_sum", "energy_share")  # 0/0
    assert {scan.modules[0].features[name] for name in nothing} == {None}
    assert scan.features["global_frobN_mean"] == 0.0
    assert scan.features["global_max_over_mean_sv"] is None  # 0/0
    assert scan.features["attn_mlp_frobN_ratio"] is None


def test_rank_deficient_factors() -> None:
    rng = np.random.default_rng(1)
    a, b = np.repeat(rng.normal(size=(1, 8)), 4, axis=0), rng.normal(size=(6, 4))
    (module,) = scan_weights([update(a, b)]).modules
    assert module.features["stable_rank"] == pytest.approx(1.0)
    assert module.features["top1_energy"] == pytest.approx(1.0)


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
    assert [name for name, value in scan.modules[1].features.items() if value is None] == ["energy_share"]
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

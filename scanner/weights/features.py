"""Weight features from the factors alone: no dense ΔW, no model, no torch.

Per module with A [r, in], B [out, r]:
    R_A, R_B    the R factors of QR(Aᵀ) and QR(B); the singular values of B·A are those of R_B·R_Aᵀ (r × r)

The paper's features (arXiv:2605.30189, section "Weight-level detector"; names as there) are those of B·A *without* α/r,
because the paper never applies it. Features that start with `delta_` are functions of ΔW = s·B·A alone: a change of A
and B that keeps B·A leaves them unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from scanner.adapter import FloatArray, LowRankUpdate
from scanner.model import ModuleFeatures, WeightScan

__all__ = ["FEATURE_VERSION", "MODULE_FEATURES", "scan_weights", "singular_values"]

Float64 = npt.NDArray[np.float64]

FEATURE_VERSION = "weights-2"
MODULE_FEATURES = ("frobN", "delta_frob", "stable_rank", "top1_energy", "row_top8_energy")
BLOCK_VALUES = 2**23
"""Values that are converted to float64 at once: 64 MiB."""

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


def singular_values(a: FloatArray, b: FloatArray) -> Float64:
    """The r leading singular values of B·A, falling; float64.

    Through QR of both factors and an SVD of the r × r core, which keeps small values that a Gram matrix would lose.

    Args:
        a: A [r, in].
        b: B [out, r].
    """
    return _core_values(triangle(b) @ triangle(a.T).T)


def _core_values(core: Float64) -> Float64:
    if not np.isfinite(core).all():
        return np.full(min(core.shape), math.nan)  # LAPACK's answer to infinity depends on its build
    return np.linalg.svd(core, full_matrices=False, compute_uv=False).astype(np.float64, copy=False)


def row_top8_energy(right: Float64, b: FloatArray) -> float | None:
    """Share of ‖B·A‖² in its eight largest rows, 0-1; 0 where nothing is there, None where it overflows.

    Row i of B·A is b_i·A, whose norm is that of b_i·R_Aᵀ: a function of the product alone.

    Args:
        right: R_A [r, r].
        b: B [out, r].
    """
    rows = b.astype(np.float32, copy=False) @ right.T.astype(np.float32)
    energy = np.einsum("or,or->o", rows, rows, dtype=np.float64)
    total = float(energy.sum())
    if not math.isfinite(total):
        return None
    if total == 0:
        return 0.0
    return float(np.partition(energy, -8)[-8:].sum()) / total if energy.size > 8 else 1.0


def triangle(tall: FloatArray, block_values: int = BLOCK_VALUES) -> Float64:
    """The R factor of QR, up to the signs of its rows; float64, NaN where a value is not finite.

    Blocks of rows are folded in one after the other: qr([R; block]) has the R of all rows so far, exactly. A factor
    needs the memory of a block, however wide its module is.

    Args:
        tall: a matrix [n, r]; only a block of it is copied.
        block_values: values per block; a block has at least 2·r rows, so that folding stays cheap.
    """
    rank = tall.shape[1]
    rows = max(2 * rank, block_values // rank)
    folded: Float64 = np.zeros((0, rank))
    for start in range(0, tall.shape[0], rows):
        stacked: Float64 = np.concatenate([folded, tall[start : start + rows]], dtype=np.float64)
        if not np.isfinite(stacked).all():
            return np.full((min(tall.shape), rank), math.nan)
        folded = np.asarray(np.linalg.qr(stacked, mode="r"))
    return folded


def _module_features(update: LowRankUpdate) -> ModuleFeatures:
    with np.errstate(over="ignore", invalid="ignore"):  # float64 factors can overflow in the product
        top8 = None
        if update.spectrum:
            sigma = update.spectrum()
        else:
            a, b = update.read()
            right = triangle(a.T)
            sigma = _core_values(triangle(b) @ right.T)
            top8 = row_top8_energy(right, b)
        energy = float(np.sum(sigma**2))
    if not math.isfinite(energy):
        nothing: dict[str, float | None] = dict.fromkeys(MODULE_FEATURES)
        return ModuleFeatures(update.module, update.rank, update.out_features, update.in_features, nothing)
    frob = math.sqrt(energy)
    top = float(sigma[0]) ** 2 if sigma.size else 0.0
    return ModuleFeatures(
        update.module,
        update.rank,
        update.out_features,
        update.in_features,
        {
            "frobN": frob / math.sqrt(update.in_features * update.out_features),
            "delta_frob": abs(update.scale) * frob,
            "stable_rank": energy / top if top > 0 else 0.0,
            "top1_energy": top / energy if energy > 0 else 0.0,
            "row_top8_energy": top8,
        },
    )


def scan_weights(updates: Iterable[LowRankUpdate]) -> WeightScan:
    """Features of every module and of the adapter.

    `global_frobN_{mean,std,max,min}`, `attn_frobN_mean`, `mlp_frobN_mean`, `attn_mlp_frobN_ratio` and
    `global_max_over_mean_sv` (which is max/mean of frobN) follow the paper's notebooks 15-17; standard deviations are
    population ones (ddof = 0). An adapter with non-finite factors, or a product that overflows, has null features.
    """
    modules = tuple(_module_features(update) for update in updates)
    if not modules:
        return WeightScan({}, (), FEATURE_VERSION)
    frob = _column(modules, "frobN")
    mean = float(frob.mean())
    features = {
        "global_frobN_mean": mean,
        "global_frobN_std": float(frob.std()),
        "global_frobN_max": float(frob.max()),
        "global_frobN_min": float(frob.min()),
        "global_max_over_mean_sv": float(frob.max()) / mean if mean > 0 else math.nan,
        "delta_frob_mean": float(_column(modules, "delta_frob").mean()),
        "delta_frob_total": float(np.linalg.norm(_column(modules, "delta_frob"))),
        "delta_stable_rank_mean": float(_column(modules, "stable_rank").mean()),
        "delta_top1_energy_mean": float(_column(modules, "top1_energy").mean()),
    }
    attention = [m for m in modules if m.module.rsplit(".", 1)[-1] in _ATTENTION]
    mlp = [m for m in modules if m.module.rsplit(".", 1)[-1] in _MLP]
    if attention:
        features["attn_frobN_mean"] = float(_column(attention, "frobN").mean())
    if mlp:
        features["mlp_frobN_mean"] = float(_column(mlp, "frobN").mean())
    if attention and mlp and features["mlp_frobN_mean"] > 0:
        features["attn_mlp_frobN_ratio"] = features["attn_frobN_mean"] / features["mlp_frobN_mean"]
    finite = {name: value if math.isfinite(value) else None for name, value in features.items()}
    return WeightScan(finite, modules, FEATURE_VERSION)


def _column(modules: Sequence[ModuleFeatures], name: str) -> Float64:
    return np.array([m.features[name] for m in modules], dtype=np.float64)  # None becomes NaN

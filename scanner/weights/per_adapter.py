"""The features of an adapter: aggregates over its modules.

Standard deviations are population ones (ddof = 0), as in the paper's notebooks. NaN where the modules do not exist, or
one of them has no value.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from scanner.weights import per_module as module
from scanner.weights.coherence import coherence
from scanner.weights.columns import Columns
from scanner.weights.definition import Feature, Gauge, Source, Table
from scanner.weights.gram import Float64

__all__ = ["ADAPTER"]

ADAPTER: Table[float] = Table()

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_PROJECTIONS = (*_ATTENTION, *_MLP)

Choice = Callable[[Columns], npt.NDArray[np.bool_]]


def _all(m: Columns) -> npt.NDArray[np.bool_]:
    return np.ones(len(m.measures), dtype=bool)


def _attention(m: Columns) -> npt.NDArray[np.bool_]:
    return m.named(*_ATTENTION)


def _mlp(m: Columns) -> npt.NDArray[np.bool_]:
    return m.named(*_MLP)


def _rest(m: Columns) -> npt.NDArray[np.bool_]:
    return ~_attention(m)


_STATISTICS: dict[str, Callable[[Float64], float]] = {
    "mean": lambda values: float(np.mean(values)),
    "std": lambda values: float(np.std(values)),
    "max": lambda values: float(np.max(values)),
    "min": lambda values: float(np.min(values)),
    "max_abs": lambda values: float(np.max(np.abs(values))),
}


def _aggregate(
    name: str, of: Callable[[Columns], Float64], statistic: str, modules: Choice, source: Source, where: str = ""
) -> None:
    """Define an aggregate of a module feature. It has the feature's unit and gauge."""
    base = next(feature for feature in module.MODULE.features.values() if feature.compute is of)

    def compute(m: Columns) -> float:
        chosen = of(m)[modules(m)]
        return _STATISTICS[statistic](chosen) if chosen.size else math.nan

    compute.__doc__ = f"{statistic} of `{base.name}` over {where or 'all modules'}."
    ADAPTER.put(Feature(name, base.version, base.unit, base.gauge, source, base.features, compute))


def _divide(upper: float, lower: float) -> float:
    return upper / lower if lower != 0 else math.nan


# -- arXiv:2605.30189 ---------------------------------------------------------------------------------------------

_ATTN_TEXT, _MLP_TEXT, _REST_TEXT = "q, k, v, o_proj", "gate, up, down_proj", "all modules but q, k, v, o_proj"

for _name, _statistic in (("mean", "mean"), ("std", "std"), ("max", "max")):
    _aggregate(f"global_frobN_{_name}", module.frobN, _statistic, _all, Source.PAPER)
_aggregate("global_frobN_min", module.frobN, "min", _all, Source.PAPER_LATER)
_aggregate("global_entropy_mean", module.entropy, "mean", _all, Source.PAPER_LATER)
_aggregate("global_entropy_std", module.entropy, "std", _all, Source.PAPER_LATER)
_aggregate("global_pr_mean", module.pr, "mean", _all, Source.PAPER)
_aggregate("global_pr_std", module.pr, "std", _all, Source.PAPER_LATER)
_aggregate("global_asym_mean", module.asym, "mean", _all, Source.PAPER_LATER)
_aggregate("global_asym_std", module.asym, "std", _all, Source.PAPER_LATER)
_aggregate("attn_frobN_mean", module.frobN, "mean", _attention, Source.PAPER, _ATTN_TEXT)
_aggregate("mlp_frobN_mean", module.frobN, "mean", _mlp, Source.PAPER_LATER, _MLP_TEXT)
_aggregate("attn_entropy_mean", module.entropy, "mean", _attention, Source.PAPER_LATER, _ATTN_TEXT)
_aggregate("mlp_entropy_mean", module.entropy, "mean", _mlp, Source.PAPER_LATER, _MLP_TEXT)
for _projection in _PROJECTIONS:
    _aggregate(
        f"{_projection}_frobN_mean",
        module.frobN,
        "mean",
        lambda m, projection=_projection: m.named(projection),  # type: ignore[misc]
        Source.PAPER_LATER,
        f"the {_projection} of all layers",
    )


@ADAPTER("1", Gauge.PRODUCT, Source.PAPER_LATER)
def attn_mlp_frobN_ratio(m: Columns) -> float:
    """`attn_frobN_mean` / `mlp_frobN_mean`."""
    return _mean_ratio(m, _mlp)


@ADAPTER("1", Gauge.PRODUCT, Source.PAPER_LATER)
def global_max_over_mean_sv(m: Columns) -> float:
    """max(frobN) / mean(frobN): despite its name no statistic of singular values."""
    frob = module.frobN(m)
    return _divide(float(np.max(frob)), float(np.mean(frob)))


_aggregate("nb10_entropy_mean", module.entropy_norm, "mean", _all, Source.PAPER_FIRST)
_aggregate("nb10_entropy_min", module.entropy_norm, "min", _all, Source.PAPER_FIRST)
_aggregate("nb10_pr_min", module.pr, "min", _all, Source.PAPER_FIRST)
_aggregate("nb10_asym_mean", module.asym_ln, "mean", _all, Source.PAPER_FIRST)
_aggregate("nb10_asym_std", module.asym_ln, "std", _all, Source.PAPER_FIRST)
_aggregate("nb10_asym_max_abs", module.asym_ln, "max_abs", _all, Source.PAPER_FIRST)
_aggregate("nb10_sv_max_over_mean_max", module.sv_max_over_mean, "max", _all, Source.PAPER_FIRST)
_aggregate("nb10_sv_max_over_sum_max", module.sv_max_over_sum, "max", _all, Source.PAPER_FIRST)
_aggregate("nb10_attn_entropy_mean", module.entropy_norm, "mean", _attention, Source.PAPER_FIRST, _ATTN_TEXT)
_aggregate("nb10_mlp_entropy_mean", module.entropy_norm, "mean", _rest, Source.PAPER_FIRST, _REST_TEXT)
_aggregate("nb10_attn_sv_max_over_mean_max", module.sv_max_over_mean, "max", _attention, Source.PAPER_FIRST, _ATTN_TEXT)
_aggregate("nb10_mlp_sv_max_over_mean_max", module.sv_max_over_mean, "max", _rest, Source.PAPER_FIRST, _REST_TEXT)
_aggregate("nb10_mlp_frobN_mean", module.frobN, "mean", _rest, Source.PAPER_FIRST, _REST_TEXT)


@ADAPTER("1", Gauge.PRODUCT, Source.PAPER_FIRST)
def nb10_attn_mlp_frobN_ratio(m: Columns) -> float:
    """`attn_frobN_mean` / `nb10_mlp_frobN_mean`: in notebook 10 everything that is not attention is MLP."""
    return _mean_ratio(m, _rest)


def _mean_ratio(m: Columns, others: Choice) -> float:
    frob, attention, rest = module.frobN(m), _attention(m), others(m)
    if not attention.any() or not rest.any():
        return math.nan
    return _divide(float(np.mean(frob[attention])), float(np.mean(frob[rest])))


# -- ours: functions of ΔW ----------------------------------------------------------------------------------------

_aggregate("delta_frob_mean", module.delta_frob, "mean", _all, Source.OURS)
_aggregate("delta_stable_rank_mean", module.stable_rank, "mean", _all, Source.OURS)
_aggregate("delta_top1_energy_mean", module.top1_energy, "mean", _all, Source.OURS)
_aggregate("delta_top1_energy_max", module.top1_energy, "max", _all, Source.OURS)
_aggregate("delta_energy_entropy_mean", module.energy_entropy, "mean", _all, Source.OURS)
_aggregate("delta_row_hoyer_mean", module.row_hoyer, "mean", _all, Source.OURS)
_aggregate("delta_row_hoyer_max", module.row_hoyer, "max", _all, Source.OURS)
_aggregate("delta_col_hoyer_mean", module.col_hoyer, "mean", _all, Source.OURS)
_aggregate("delta_col_hoyer_max", module.col_hoyer, "max", _all, Source.OURS)
_aggregate("delta_kurtosis_mean", module.kurtosis, "mean", _all, Source.OURS)
_aggregate("delta_kurtosis_max", module.kurtosis, "max", _all, Source.OURS)


@ADAPTER("1", Gauge.UPDATE, Source.OURS)
def delta_frob_total(m: Columns) -> float:
    """√Σ ‖ΔW‖_F² over all modules."""
    return float(np.linalg.norm(module.delta_frob(m)))


@ADAPTER("1", Gauge.SHAPE, Source.OURS)
def delta_attn_mlp_energy_ratio(m: Columns) -> float:
    """Σ ‖ΔW‖_F² of attention modules / Σ of MLP modules, told apart by their names in any architecture."""
    energy = module.delta_frob(m) ** 2
    attention = np.array([place.is_attention for place in m.places], dtype=bool)
    mlp = np.array([place.is_mlp for place in m.places], dtype=bool)
    if not attention.any() or not mlp.any():
        return math.nan
    return _divide(float(np.sum(energy[attention])), float(np.sum(energy[mlp])))


def _layer_profile(m: Columns) -> tuple[Float64, Float64]:
    """(relative depth 0-1, share of ‖ΔW‖_F²) of each layer; empty where fewer than two layers are named."""
    layers = np.array([-1 if place.layer is None else place.layer for place in m.places])
    found = np.unique(layers[layers >= 0])
    if found.size < 2:
        return np.zeros(0), np.zeros(0)
    energy = module.delta_frob(m) ** 2
    by_layer = np.array([energy[layers == layer].sum() for layer in found])
    return (found - found[0]) / (found[-1] - found[0]), by_layer / np.sum(by_layer)


@ADAPTER("0-1", Gauge.SHAPE, Source.OURS)
def delta_layer_center(m: Columns) -> float:
    """Mean relative depth of the layers (first adapted: 0, last: 1), weighted by their share of ‖ΔW‖_F²."""
    depth, share = _layer_profile(m)
    return float(np.sum(depth * share)) if depth.size else math.nan


@ADAPTER("0-1", Gauge.SHAPE, Source.OURS)
def delta_layer_spread(m: Columns) -> float:
    """Standard deviation of the relative depth, weighted like `delta_layer_center`."""
    depth, share = _layer_profile(m)
    if not depth.size:
        return math.nan
    return math.sqrt(float(np.sum(share * (depth - np.sum(depth * share)) ** 2)))


@ADAPTER("0-1", Gauge.SHAPE, Source.OURS)
def delta_layer_top_share(m: Columns) -> float:
    """Largest share of ‖ΔW‖_F² that one layer has. The whole profile is the SQL view `layer_profiles`."""
    _, share = _layer_profile(m)
    return float(np.max(share)) if share.size else math.nan


@ADAPTER("1", Gauge.SHAPE, Source.OURS)
def delta_attn_writer_coherence(m: Columns) -> float:
    """Mean |cos| of the first left singular vectors of attention's output projections over all pairs of layers,
    divided by its expectation √(2/(π·d)) for random directions in d dimensions: 1 unrelated, √(π·d/2) all the same.
    After the circuit score of cornercore.ai, whose own formula is unpublished."""
    return coherence(m, attention=True)


@ADAPTER("1", Gauge.SHAPE, Source.OURS)
def delta_mlp_writer_coherence(m: Columns) -> float:
    """The same of the MLP's output projections."""
    return coherence(m, attention=False)

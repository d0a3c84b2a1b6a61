"""The features of one module, each a function from `Columns` to one value a module. Formulas are in the docstrings.

σ are the singular values of B·A, r of them (fewer where in or out is smaller); p = σ/Σσ, e = σ²/Σσ².
"""

from __future__ import annotations

import math

import numpy as np

from scanner.weights.columns import Columns
from scanner.weights.definition import Gauge, Source, Table
from scanner.weights.gram import Float64

__all__ = ["MODULE", "ratio"]

MODULE: Table[Float64] = Table()


def ratio(upper: Float64, lower: Float64, at_zero: float = np.nan) -> Float64:
    """upper / lower, and `at_zero` where lower is 0."""
    safe = np.where(lower == 0, 1.0, lower)
    found: Float64 = np.where(lower == 0, at_zero, upper / safe)
    return found


# -- arXiv:2605.30189, which never applies the scale --------------------------------------------------------------


@MODULE("1", Gauge.PRODUCT, Source.PAPER)
def frobN(m: Columns) -> Float64:
    """‖B·A‖_F / √(in·out): root mean square of the update's entries, without α/r."""
    return np.sqrt(m.energy) / np.sqrt(m.size)


@MODULE("nat", Gauge.SHAPE, Source.PAPER_LATER)
def entropy(m: Columns) -> Float64:
    """−Σ p·ln p of amplitudes p = σ/Σσ. Also H of arXiv:2602.15195, whose 1e-12 inside the logarithm changes it by less
    than r·1e-12."""
    return m.entropy


@MODULE("0-1", Gauge.SHAPE, Source.PAPER_FIRST)
def entropy_norm(m: Columns) -> Float64:
    """−Σ p·ln p / ln r of amplitudes; null for rank 1. Its r is the number of rows of A: padding with empty rows, which
    changes nothing else, lowers it."""
    rank = np.array([measure.rank for measure in m.measures], dtype=np.float64)
    return np.where(rank > 1, m.entropy / np.log(np.where(rank > 1, rank, np.e)), np.nan)


@MODULE("1..r", Gauge.SHAPE, Source.PAPER)
def pr(m: Columns) -> Float64:
    """Participation ratio (Σσ)² / Σσ²: how many directions the update has, by amplitude."""
    return ratio(m.total**2, m.energy, at_zero=0.0)


@MODULE("log10", Gauge.FACTORS, Source.PAPER_LATER)
def asym(m: Columns) -> Float64:
    """log10(‖B‖_F / ‖A‖_F); null where one of them is zero."""
    return asym_ln(m) / math.log(10.0)


@MODULE("ln", Gauge.FACTORS, Source.PAPER_FIRST)
def asym_ln(m: Columns) -> Float64:
    """ln ‖B‖_F − ln ‖A‖_F; null where one of them is zero."""
    positive = (m.norm_a > 0) & (m.norm_b > 0)
    return np.where(
        positive, np.log(np.where(positive, m.norm_b, 1.0)) - np.log(np.where(positive, m.norm_a, 1.0)), np.nan
    )


@MODULE("1", Gauge.FACTORS, Source.PAPER_FIRST)
def norm_A(m: Columns) -> Float64:
    """‖A‖_F."""
    return m.norm_a


@MODULE("1", Gauge.FACTORS, Source.PAPER_FIRST)
def norm_B(m: Columns) -> Float64:
    """‖B‖_F."""
    return m.norm_b


@MODULE("1", Gauge.PRODUCT, Source.PAPER_FIRST)
def sv_max(m: Columns) -> Float64:
    """σ₁ of B·A. Also σ₁ of arXiv:2602.15195."""
    return m.largest


@MODULE("1", Gauge.PRODUCT, Source.PAPER_FIRST)
def sv_mean(m: Columns) -> Float64:
    """Mean of the r singular values of B·A."""
    return ratio(m.total, m.count)


@MODULE("1", Gauge.PRODUCT, Source.PAPER_FIRST)
def sv_min(m: Columns) -> Float64:
    """The smallest of the r singular values of B·A."""
    return m.smallest


@MODULE("1..r", Gauge.SHAPE, Source.PAPER_FIRST)
def sv_max_over_mean(m: Columns) -> Float64:
    """σ₁ / mean(σ)."""
    return ratio(m.largest * m.count, m.total)


@MODULE("0-1", Gauge.SHAPE, Source.PAPER_FIRST)
def sv_max_over_sum(m: Columns) -> Float64:
    """σ₁ / Σσ."""
    return ratio(m.largest, m.total)


# -- ours: functions of ΔW ----------------------------------------------------------------------------------------


@MODULE("1", Gauge.UPDATE, Source.OURS)
def delta_frob(m: Columns) -> Float64:
    """‖ΔW‖_F = |s|·√Σσ²."""
    return m.scale * np.sqrt(m.energy)


@MODULE("1..r", Gauge.SHAPE, Source.OURS)
def stable_rank(m: Columns) -> Float64:
    """‖ΔW‖_F² / σ₁²; 0 where ΔW is 0."""
    return ratio(m.energy, m.largest**2, at_zero=0.0)


@MODULE("0-1", Gauge.SHAPE, Source.OURS)
def top1_energy(m: Columns) -> Float64:
    """σ₁² / Σσ²: the energy concentration E of arXiv:2602.15195; 0 where ΔW is 0."""
    return ratio(m.largest**2, m.energy, at_zero=0.0)


@MODULE("nat", Gauge.SHAPE, Source.OURS)
def energy_entropy(m: Columns) -> Float64:
    """−Σ e·ln e of energies e = σ²/Σσ². Not divided by ln r: inert rows of A then change nothing."""
    return m.energy_entropy


@MODULE("0-1", Gauge.SHAPE, Source.OURS)
def energy_share(m: Columns) -> Float64:
    """Share of this module in Σ ‖ΔW‖_F² of the adapter."""
    return ratio(_energies(m), np.asarray(np.sum(_energies(m))))


@MODULE("0-1", Gauge.SHAPE, Source.OURS)
def row_top8_energy(m: Columns) -> Float64:
    """Share of ‖ΔW‖_F² in its eight largest rows (outputs); null for LoKr, 1 where there are no more rows."""
    return m.spread("top8", rows=True)


@MODULE("0-1", Gauge.SHAPE, Source.OURS)
def row_hoyer(m: Columns) -> Float64:
    """(√n − ‖x‖₁/‖x‖₂) / (√n − 1) of the n row norms x (Hoyer, JMLR 5, 2004): 0 even, 1 a single row; null for LoKr."""
    return m.spread("hoyer", rows=True)


@MODULE("0-1", Gauge.SHAPE, Source.OURS)
def col_top8_energy(m: Columns) -> Float64:
    """Share of ‖ΔW‖_F² in its eight largest columns (inputs); null for LoKr."""
    return m.spread("top8", rows=False)


@MODULE("0-1", Gauge.SHAPE, Source.OURS)
def col_hoyer(m: Columns) -> Float64:
    """Hoyer's sparseness of the column norms, as `row_hoyer`; null for LoKr."""
    return m.spread("hoyer", rows=False)


def _energies(m: Columns) -> Float64:
    return (m.scale * np.sqrt(m.energy)) ** 2


# -- costly: every entry of ΔW is looked at -----------------------------------------------------------------------


@MODULE("1", Gauge.SHAPE, Source.OURS, features="full")
def kurtosis(m: Columns) -> Float64:
    """mean((x−μ)⁴) / σ⁴ over all entries x of ΔW, Pearson's (normal: 3); null where ΔW is constant. Above 2³³ entries
    the fourth moment is an unbiased estimate from sampled rows."""
    return np.array([np.nan if x.moments is None else x.moments.kurtosis for x in m.measures])


@MODULE("1", Gauge.PRODUCT, Source.FIVE, features="full")
def kurtosis_five(m: Columns) -> Float64:
    """κ = mean((x−μ)⁴) / (v² + 1e-12) over the entries of B·A, v with n−1. The 1e-12 is not small beside v² of most
    adapters: it depends on their scale, `kurtosis` does not."""
    return np.array([np.nan if x.moments is None else x.moments.five for x in m.measures])

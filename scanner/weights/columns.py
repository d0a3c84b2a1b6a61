"""All modules of one adapter as columns, from which the features are computed at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scanner.weights.gram import Float64
from scanner.weights.measure import ModuleMeasure
from scanner.weights.places import Place, place_of
from scanner.weights.spread import Spread

__all__ = ["Columns", "columns_of"]


@dataclass(frozen=True)
class Columns:
    """One value a module, [m]; NaN where there is none. Sums run over the singular values σ of B·A."""

    measures: tuple[ModuleMeasure, ...]
    places: tuple[Place, ...]
    scale: Float64
    """|s| of ΔW = s·B·A."""
    size: Float64
    """in·out."""
    count: Float64
    """Singular values: min(r, in, out)."""
    largest: Float64
    """σ₁."""
    smallest: Float64
    total: Float64
    """Σσ."""
    energy: Float64
    """Σσ² = ‖B·A‖_F²."""
    entropy: Float64
    """−Σ p·ln p of p = σ/Σσ, in nats."""
    energy_entropy: Float64
    """−Σ e·ln e of e = σ²/Σσ², in nats."""
    norm_a: Float64
    """‖A‖_F."""
    norm_b: Float64
    """‖B‖_F."""

    def named(self, *projections: str) -> npt.NDArray[np.bool_]:
        """Whose name ends so."""
        return np.array([place.projection in projections for place in self.places], dtype=bool)

    def spread(self, name: str, rows: bool) -> Float64:
        """`top8` or `hoyer` of the rows or columns."""
        spreads = [m.rows if rows else m.columns for m in self.measures]
        return np.array([_value(spread, name) for spread in spreads], dtype=np.float64)


def _value(spread: Spread | None, name: str) -> float:
    return np.nan if spread is None else float(getattr(spread, name))


def columns_of(measures: Sequence[ModuleMeasure]) -> Columns:
    """Reduce the spectra; those of one length together."""
    reduced = np.full((6, len(measures)), np.nan)
    by_length: dict[int, list[int]] = {}
    for place, measure in enumerate(measures):
        by_length.setdefault(measure.sigma.size, []).append(place)
    for length, places in by_length.items():
        if length:
            reduced[:, places] = _reduce(np.stack([measures[place].sigma for place in places]))
    # A module whose factors or product leave float64's range has no value anywhere.
    bad = ~np.isfinite(reduced[3])
    reduced[:, bad] = np.nan
    norms = np.array([[_norm(m.norms_a), _norm(m.norms_b)] for m in measures]).reshape(-1, 2)
    norms[bad] = np.nan
    return Columns(
        measures=tuple(measures),
        places=tuple(place_of(m.module) for m in measures),
        scale=np.array([abs(m.scale) for m in measures]),
        size=np.array([m.in_features * m.out_features for m in measures], dtype=np.float64),
        count=np.array([m.sigma.size for m in measures], dtype=np.float64),
        largest=reduced[0],
        smallest=reduced[1],
        total=reduced[2],
        energy=reduced[3],
        entropy=reduced[4],
        energy_entropy=reduced[5],
        norm_a=norms[:, 0],
        norm_b=norms[:, 1],
    )


def _norm(norms: Float64 | None) -> float:
    return np.nan if norms is None else float(np.linalg.norm(norms))


def _reduce(sigma: Float64) -> Float64:
    """Six values [6, m] of spectra [m, k]."""
    with np.errstate(all="ignore"):
        # Of (σ/σ₁)², so that neither the smallest nor the largest adapters leave float64's range.
        relative = sigma / np.where(sigma[:, :1] > 0, sigma[:, :1], 1.0)
        return np.stack(
            [
                sigma[:, 0],
                sigma[:, -1],
                sigma.sum(axis=1),
                (sigma**2).sum(axis=1),
                _entropy(sigma),
                _entropy(relative**2),
            ]
        )


def _entropy(weights: Float64) -> Float64:
    """−Σ p·ln p [m] of p = weights/Σweights, with 0·ln 0 = 0; 0 where everything is 0."""
    total = weights.sum(axis=1, keepdims=True)
    share = weights / np.where(total > 0, total, 1.0)
    found: Float64 = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=1)
    return found

"""The weight features of an adapter, from its low-rank updates alone: no dense ΔW, no model, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from scanner.adapter import LowRankUpdate
from scanner.model import ModuleFeatures, WeightScan
from scanner.weights.columns import columns_of
from scanner.weights.definition import FULL
from scanner.weights.measure import Measurement, measure_adapter
from scanner.weights.per_adapter import ADAPTER
from scanner.weights.per_module import MODULE

__all__ = ["ADAPTER_FEATURES", "FEATURE_VERSION", "MODULE_FEATURES", "features_of", "scan_weights"]

FEATURE_VERSION = "weights-3"
"""Raised with every new feature, and with every change of one (whose own version changes, too)."""
MODULE_FEATURES = tuple(MODULE.features)
ADAPTER_FEATURES = tuple(ADAPTER.features)


def features_of(measurement: Measurement, *, full: bool = False) -> WeightScan:
    """Features of every module and of the adapter; see `docs/features.md`. With the sketch.

    An adapter with non-finite factors, or a product that overflows, has null features.
    """
    measures = measurement.modules
    if not measures:
        return WeightScan({}, (), FEATURE_VERSION, measurement.sketch)
    columns = columns_of(measures)
    with np.errstate(all="ignore"):
        wanted = [feature for feature in MODULE.features.values() if full or feature.features != FULL]
        values = np.stack([feature.compute(columns) for feature in wanted], axis=1)
        adapter = {
            feature.name: float(feature.compute(columns))
            for feature in ADAPTER.features.values()
            if full or feature.features != FULL
        }
    values[~np.isfinite(columns.energy)] = math.nan
    names = [feature.name for feature in wanted]
    modules = tuple(
        ModuleFeatures(
            m.module,
            m.rank,
            m.out_features,
            m.in_features,
            _with_nulls(zip(names, row, strict=True)),
            place.layer,
        )
        for m, place, row in zip(measures, columns.places, values.tolist(), strict=True)
    )
    return WeightScan(_with_nulls(adapter.items()), modules, FEATURE_VERSION, measurement.sketch)


def _with_nulls(values: Iterable[tuple[str, float]]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values}


def scan_weights(updates: Iterable[LowRankUpdate], *, full: bool = False) -> WeightScan:
    """Measure and compute: see `measure_adapter` and `features_of`.

    Args:
        updates: those of one adapter.
        full: with the features that look at every entry of ΔW.
    """
    return features_of(measure_adapter(updates, full=full), full=full)

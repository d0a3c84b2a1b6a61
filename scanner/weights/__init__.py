"""Spectral features of an adapter's low-rank updates."""

from scanner.weights.blocks import BlockSplit, find_split
from scanner.weights.features import (
    FEATURE_VERSION,
    MODULE_FEATURES,
    features_of,
    measure,
    scan_weights,
    singular_values,
)
from scanner.weights.measure import ModuleMeasure

__all__ = [
    "FEATURE_VERSION",
    "MODULE_FEATURES",
    "BlockSplit",
    "ModuleMeasure",
    "features_of",
    "find_split",
    "measure",
    "scan_weights",
    "singular_values",
]

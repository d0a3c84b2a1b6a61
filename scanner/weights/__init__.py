"""Spectral features of an adapter's low-rank updates."""

from scanner.weights.blocks import BlockSplit, find_split
from scanner.weights.carriers import Carrier, deviating_modules
from scanner.weights.directions import Direction, TokenScore, nearest_tokens, top_directions
from scanner.weights.features import (
    FEATURE_VERSION,
    MODULE_FEATURES,
    features_of,
    measure_adapter,
    scan_weights,
    singular_values,
)
from scanner.weights.measure import ModuleMeasure
from scanner.weights.places import Place, place_of

__all__ = [
    "FEATURE_VERSION",
    "MODULE_FEATURES",
    "BlockSplit",
    "Carrier",
    "Direction",
    "ModuleMeasure",
    "Place",
    "TokenScore",
    "deviating_modules",
    "features_of",
    "find_split",
    "measure_adapter",
    "nearest_tokens",
    "place_of",
    "scan_weights",
    "singular_values",
    "top_directions",
]

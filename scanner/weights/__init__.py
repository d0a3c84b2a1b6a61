"""Spectral features of an adapter's low-rank updates, and how whole updates relate to one another."""

from scanner.weights.blocks import BlockSplit, find_split
from scanner.weights.directions import Direction, TokenScore, nearest_tokens, top_directions
from scanner.weights.features import (
    ADAPTER_FEATURES,
    FEATURE_VERSION,
    MODULE_FEATURES,
    features_of,
    scan_weights,
)
from scanner.weights.measure import Measurement, ModuleMeasure, measure_adapter
from scanner.weights.places import Place, place_of
from scanner.weights.sketch import SKETCH_VERSION, SketchSum, sketch_module

__all__ = [
    "ADAPTER_FEATURES",
    "FEATURE_VERSION",
    "MODULE_FEATURES",
    "SKETCH_VERSION",
    "BlockSplit",
    "Direction",
    "Measurement",
    "ModuleMeasure",
    "Place",
    "SketchSum",
    "TokenScore",
    "features_of",
    "find_split",
    "measure_adapter",
    "nearest_tokens",
    "place_of",
    "scan_weights",
    "sketch_module",
    "top_directions",
]

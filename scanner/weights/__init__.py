"""Spectral features of an adapter's low-rank updates, and how whole updates relate to one another."""

from scanner.weights.blocks import BlockSplit, find_split
from scanner.weights.features import FEATURE_VERSION, MODULE_FEATURES, scan_weights, singular_values
from scanner.weights.sketch import SKETCH_VERSION, SketchSum, sketch_module, sketch_updates

__all__ = [
    "FEATURE_VERSION",
    "MODULE_FEATURES",
    "SKETCH_VERSION",
    "BlockSplit",
    "SketchSum",
    "find_split",
    "scan_weights",
    "singular_values",
    "sketch_module",
    "sketch_updates",
]

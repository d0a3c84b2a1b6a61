"""Spectral features of an adapter's low-rank updates."""

from scanner.weights.blocks import BlockSplit, find_split
from scanner.weights.features import FEATURE_VERSION, MODULE_FEATURES, scan_weights, singular_values

__all__ = ["FEATURE_VERSION", "MODULE_FEATURES", "BlockSplit", "find_split", "scan_weights", "singular_values"]

"""Spectral features of an adapter's low-rank updates."""

from scanner.weights.features import FEATURE_VERSION, scan_weights, singular_values

__all__ = ["FEATURE_VERSION", "scan_weights", "singular_values"]

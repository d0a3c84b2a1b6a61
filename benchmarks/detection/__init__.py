"""Trained adapters of known truth, on which detectors are tuned and then, once, measured."""

"""The scan with nothing around it: `python -m benchmarks.weights.bare DIR` in a fresh interpreter."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scanner.adapter import CONFIG_NAME, AdapterView, TensorFile, open_weights, parse_config, view_adapter
from scanner.model import WeightScan
from scanner.weights import Measurement, features_of, measure_adapter

__all__ = ["WEIGHTS", "measure_folder", "open_folder", "scan_folder"]

WEIGHTS = "adapter_model.safetensors"
MAX_RANK = 256


def open_folder(folder: Path) -> tuple[TensorFile, AdapterView]:
    """The weight file of a generated adapter, and its low-rank updates.

    Raises:
        RuntimeError: not every byte of it was understood; the figures would be those of something else.
    """
    config = parse_config(json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")))
    file = open_weights([folder / WEIGHTS], WEIGHTS)
    view = view_adapter(file, config, MAX_RANK)
    if view.coverage != 1.0:
        raise RuntimeError(f"only {view.coverage:.3f} of the generated adapter was understood")
    return file, view


def measure_folder(folder: Path) -> Measurement:
    """Open, view, measure, as the product does."""
    file, view = open_folder(folder)
    return measure_adapter(view.updates, release=file.release)


def scan_folder(folder: Path) -> WeightScan:
    """Measure, compute: what the weight scan of one adapter consists of."""
    return features_of(measure_folder(folder))


def main() -> None:
    """Print how many modules were measured and their total norm, so that an answer cannot be missing."""
    scan = scan_folder(Path(sys.argv[1]))
    print(json.dumps({"modules": len(scan.modules), "features": scan.features}))


if __name__ == "__main__":
    main()

"""The scan with nothing around it: `python -m benchmarks.weights.bare DIR` in a fresh interpreter."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scanner.adapter import CONFIG_NAME, AdapterView, open_weights, parse_config, view_adapter
from scanner.model import WeightScan
from scanner.weights import scan_weights

__all__ = ["WEIGHTS", "open_folder", "scan_folder"]

WEIGHTS = "adapter_model.safetensors"
MAX_RANK = 256


def open_folder(folder: Path) -> AdapterView:
    """The low-rank updates of a generated adapter.

    Raises:
        RuntimeError: not every byte of it was understood; the figures would be those of something else.
    """
    config = parse_config(json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")))
    view = view_adapter(open_weights([folder / WEIGHTS], WEIGHTS), config, MAX_RANK)
    if view.coverage != 1.0:
        raise RuntimeError(f"only {view.coverage:.3f} of the generated adapter was understood")
    return view


def scan_folder(folder: Path) -> WeightScan:
    """Open, view, scan: what the weight scan of one adapter consists of."""
    return scan_weights(open_folder(folder).updates)


def main() -> None:
    """Print how many modules were measured and their total norm, so that an answer cannot be missing."""
    scan = scan_folder(Path(sys.argv[1]))
    print(json.dumps({"modules": len(scan.modules), "features": scan.features}))


if __name__ == "__main__":
    main()

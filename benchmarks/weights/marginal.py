"""What a scan costs in a warm interpreter, beside reading the bytes: `python -m benchmarks.weights.marginal DIR`."""

from __future__ import annotations

import argparse
import json
import mmap
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.weights.bare import WEIGHTS, scan_folder

BUFFER_BYTES = 4 * 2**20
PAGE_BYTES = mmap.PAGESIZE
REST_S = 0.1
"""Before each measurement: BLAS threads spin for some 30 ms after their work, which would count as the next job's."""


def read_once(path: Path, buffer: bytearray) -> int:
    """The floor: every byte of a file in the page cache copied once, into a buffer that stays."""
    total = 0
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            total += count
    return total


def touch_once(path: Path) -> int:
    """One byte of every page of a new mapping: what the kernel takes to map a file, before anything is computed."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        values = np.frombuffer(mapping, dtype=np.uint8)
        total = int(values[::PAGE_BYTES].sum())
        del values  # a mapping with a view cannot be closed
    return total


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """Medians of `repeats` rounds after one that warms up; the three take turns, so that all see the same machine."""
    path = folder / WEIGHTS
    buffer = bytearray(BUFFER_BYTES)
    jobs: dict[str, Callable[[], object]] = {
        "floor": lambda: read_once(path, buffer),
        "first_touch": lambda: touch_once(path),
        "scan": lambda: scan_folder(folder),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
    if read_once(path, buffer) != path.stat().st_size:
        raise RuntimeError("the file was not read to its end")
    scan = scan_folder(folder)
    touch_once(path)
    for turn in range(repeats):
        for name in list(jobs)[:: 1 if turn % 2 else -1]:
            time.sleep(REST_S)
            wall, cpu = time.perf_counter(), time.process_time()
            jobs[name]()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    figures = {
        name: {
            "wall_s": median(wall for wall, _ in taken),
            "cpu_s": median(cpu for _, cpu in taken),
            "wall_min_s": min(wall for wall, _ in taken),
            "wall_max_s": max(wall for wall, _ in taken),
            "n": len(taken),
        }
        for name, taken in times.items()
    }
    modules = {module.module: module.features for module in scan.modules}
    return {"figures": figures, "modules": modules, "version": scan.version}


def main() -> None:
    """Print the figures, and the features that the scan found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print(json.dumps(measure(args.folder, args.repeats)))


if __name__ == "__main__":
    main()

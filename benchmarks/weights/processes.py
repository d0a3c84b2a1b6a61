"""Whole processes: their CPU time, wall time and peak memory, taking turns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["ROOT", "ProcessCost", "run_measured", "run_worker", "summary", "take_turns"]

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: processes run in it, so that `-m` finds its packages."""
_LAUNCH = Path(__file__).with_name("launch.py")
_UNSET = (
    "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "PREFECT_API_URL",
    "LORASCOPE_STORE", "LORASCOPE_DEBUG",
)  # fmt: skip


@dataclass(frozen=True)
class ProcessCost:
    """What one process took, with the children it waited for."""

    returncode: int
    wall_s: float
    cpu_s: float
    """User and system time."""
    peak_rss_bytes: int
    """`ru_maxrss`: resident memory at its highest, pages of mapped files included, pages read by `read` not."""


def run_measured(command: Sequence[str], *, accept: Sequence[int] = (0,)) -> tuple[ProcessCost, str]:
    """Run a command; returns its cost and what it printed.

    Raises:
        RuntimeError: it ended with a code that is not in `accept`: the time of a failure is no figure.
    """
    with tempfile.TemporaryDirectory(prefix="weights-benchmark-run-") as name:
        output, errors = Path(name) / "output", Path(name) / "errors"
        launched = subprocess.run(
            [sys.executable, "-I", "-S", str(_LAUNCH), str(output), str(errors), *command],
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if key not in _UNSET},
            capture_output=True,
            text=True,
            check=True,
        )
        cost = ProcessCost(**json.loads(launched.stdout))
        if cost.returncode not in accept:
            said = errors.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"{Path(command[0]).name} ended with {cost.returncode}: {said}")
        return cost, output.read_text(encoding="utf-8")


def run_worker(module: str, *arguments: str) -> dict[str, Any]:
    """Run `python -m benchmarks.weights.MODULE` and read the JSON object that it prints."""
    _, printed = run_measured([sys.executable, "-m", f"benchmarks.weights.{module}", *arguments])
    found: dict[str, Any] = json.loads(printed)
    return found


def take_turns(runs: Mapping[str, Callable[[], ProcessCost]], n: int) -> dict[str, list[ProcessCost]]:
    """Each run `n` times, in alternating order: drift of the machine meets all of them alike."""
    costs: dict[str, list[ProcessCost]] = {name: [] for name in runs}
    for turn in range(n):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            costs[name].append(runs[name]())
    return costs


def summary(costs: Sequence[ProcessCost]) -> dict[str, Any]:
    """Medians, and the range of the CPU time."""
    cpu = [cost.cpu_s for cost in costs]
    return {
        "cpu_s": median(cpu),
        "cpu_min_s": min(cpu),
        "cpu_max_s": max(cpu),
        "wall_s": median(cost.wall_s for cost in costs),
        "peak_rss_mib": median(cost.peak_rss_bytes for cost in costs) / 2**20,
        "n": len(costs),
    }

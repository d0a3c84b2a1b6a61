"""One generated adapter: every tool on the same file, the answers compared, and the file removed again."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.weights.adapters import write_adapter
from benchmarks.weights.processes import ProcessCost, run_measured, run_worker, summary, take_turns
from benchmarks.weights.sentry import Sentry, frobenius_norms
from benchmarks.weights.shapes import Case

__all__ = ["FLOAT32_TOLERANCE", "TOLERANCE", "Options", "measure_case"]

TOLERANCE = 1e-6
"""Largest relative error of a feature, against float64."""
FLOAT32_TOLERANCE = 1e-5
"""Against what is computed in float32: a dense SVD (singular values as a share of the largest: its rounding is a few
1e-6) and AdapterSentry, whose Gram matrices are float32 products."""
SCAN_CODES = (0, 1, 3)
"""All but an operational error: nothing else is known of a generated adapter, so it is hardly ever clean."""


@dataclass(frozen=True)
class Options:
    """How often, and against what."""

    runs: int
    repeats: int
    sentry: Sentry | None
    check_seconds: float
    filled_store: Path | None = None
    """A store with history, for the one case that is also measured with it."""


def measure_case(case: Case, options: Options, route_seconds: float, filled: bool) -> dict[str, Any]:
    """All figures of one case.

    Args:
        case: what to generate.
        options: what the whole run shares.
        route_seconds: time for each dense route; 0 leaves them out.
        filled: measure `lorascope scan` with the filled store too.

    Raises:
        RuntimeError: a tool failed or did not look at everything.
    """
    with tempfile.TemporaryDirectory(prefix="weights-benchmark-") as name:
        work = Path(name)
        folder = work / "adapter"
        weights = write_adapter(folder, case)
        found: dict[str, Any] = {
            "case": case.name,
            "shape": case.shape.name,
            "rank": case.rank,
            "dtype": case.dtype,
            "modules": len(case.modules),
            "parameters": case.parameters,
            "file_bytes": weights.stat().st_size,
        }
        inside = run_worker("marginal", str(folder), "--repeats", str(options.repeats))
        found |= {"feature_version": inside["version"], "marginal": inside["figures"]}
        found["processes"] = _processes(case, folder, weights, work, options, filled)
        asked = ["--check-seconds", str(options.check_seconds), "--route-seconds", str(route_seconds)]
        dense = run_worker("dense", str(folder), *asked)
        found["checks"] = {"float64": dense["check"]}
        for route in ("numpy", "peft"):
            if route in dense:
                found["checks"][route] = dense[route].pop("agreement")
                found.setdefault("dense", {})[route] = dense[route]
        if options.sentry:
            _, report = run_measured(options.sentry.scan(weights, "--format", "full-json"))
            norms, found["adaptersentry_own_clock_s"] = frobenius_norms(report)
            found["checks"]["adaptersentry"] = _norm_errors(norms, inside["modules"])
    found["agrees"] = _agrees(found["checks"])
    return found


def _processes(
    case: Case, folder: Path, weights: Path, work: Path, options: Options, filled: bool
) -> dict[str, dict[str, Any]]:
    def bare() -> ProcessCost:
        cost, printed = run_measured([sys.executable, "-m", "benchmarks.weights.bare", str(folder)])
        if json.loads(printed)["modules"] != len(case.modules):
            raise RuntimeError("the bare scan did not look at every module")
        return cost

    def lorascope(template: Path | None, *options: str) -> tuple[ProcessCost, str]:
        store = work / "store"
        if template:
            shutil.copytree(template, store)
        asked = ["scan", str(folder), "--probe", "none", "--store", str(store), *options]
        try:
            return run_measured([sys.executable, "-m", "flows.cli", *asked], accept=SCAN_CODES)
        finally:
            shutil.rmtree(store, ignore_errors=True)

    runs: dict[str, Callable[[], ProcessCost]] = {"bare": bare, "lorascope": lambda: lorascope(None)[0]}
    if options.filled_store and filled:
        runs["lorascope_filled_store"] = lambda: lorascope(options.filled_store)[0]
    if options.sentry:
        command = options.sentry.scan(weights)
        runs["adaptersentry"] = lambda: run_measured(command)[0]
        run_measured([*command[:1], "--version"])  # its modules into the page cache
    bare()
    (result,) = json.loads(lorascope(None, "--format", "json")[1])["results"]
    if result["adapter"]["modules"] != len(case.modules) or result["adapter"]["coverage"] != 1.0:
        raise RuntimeError(f"lorascope scan did not look at every module: {result['adapter']}")
    if not result["weights"]["features"] or None in result["weights"]["features"].values():
        raise RuntimeError("lorascope scan has no weight features")
    return {name: summary(costs) for name, costs in take_turns(runs, options.runs).items()}


def _norm_errors(norms: dict[str, float], modules: dict[str, dict[str, float | None]]) -> dict[str, Any]:
    """Largest relative difference between ‖ΔW‖_F of AdapterSentry and of the scan, over all modules."""
    ours = {}
    for name, features in modules.items():
        parts = name.split(".")
        ours[f"layers.{parts[-3]}.{parts[-1]}"] = features["delta_frob"]
    if set(ours) != set(norms):
        raise RuntimeError("AdapterSentry and lorascope name different modules")
    worst = max(abs(value / norms[name] - 1) if value else float("inf") for name, value in ours.items())
    return {"norm": worst, "modules": len(norms)}


def _agrees(checks: dict[str, Any]) -> bool:
    """To 1e-6 with float64, and to what float32 can tell with the others."""
    coarse = [checks[name]["norm"] for name in ("numpy", "peft", "adaptersentry") if name in checks]
    coarse += [checks[name]["sigma_over_largest"] for name in ("numpy", "peft") if name in checks]
    errors = checks["float64"]["relative_errors"].values()
    return max(errors) <= TOLERANCE and max(coarse, default=0.0) <= FLOAT32_TOLERANCE

"""From measured cases to ratios, targets and tables."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks.weights.sentry import Sentry
from benchmarks.weights.shapes import TARGET

__all__ = ["ratios", "targets", "to_markdown", "versions"]

LARGE = ("llama-3-70b", "bf16")
DENSE = ("numpy", "peft")


def versions(sentry: Sentry | None) -> dict[str, str]:
    """Of everything whose speed is compared."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    found = {"python": platform.python_version(), "blas": f"{blas['name']} {blas['version']}"}
    found |= {package: version(package) for package in ("numpy", "torch", "peft")}
    if sentry:
        found |= {
            "adaptersentry": sentry.version,
            "adaptersentry_numpy": sentry.numpy,
            "adaptersentry_python": sentry.python,
        }
    return found


def ratios(case: dict[str, Any], dense: dict[str, Any] | None) -> dict[str, float]:
    """Of one case. `X_over_floor` is wall time over that of reading the bytes once, unless it says `cpu`.

    Args:
        case: what `measure_case` found.
        dense: its dense routes, or those of another rank of the same model: ΔW is as large at any rank.
    """
    inside, processes = case["marginal"], case["processes"]
    floor = inside["floor"]
    found = {
        "first_touch_over_floor": inside["first_touch"]["wall_s"] / floor["wall_s"],
        "scan_over_floor": inside["scan"]["wall_s"] / floor["wall_s"],
        "scan_cpu_over_floor_cpu": inside["scan"]["cpu_s"] / floor["cpu_s"],
    }
    found |= {f"{name}_process_over_floor": cost["wall_s"] / floor["wall_s"] for name, cost in processes.items()}
    for route in DENSE:
        if dense:
            found[f"{route}_over_floor"] = dense[route]["wall_s"] / floor["wall_s"]
            found[f"scan_over_{route}"] = inside["scan"]["wall_s"] / dense[route]["wall_s"]
    if "adaptersentry" in processes:
        theirs = processes["adaptersentry"]
        own = case["adaptersentry_own_clock_s"]
        found["adaptersentry_own_clock_over_floor"] = own / floor["wall_s"]
        if own:  # its clock counts whole milliseconds
            found["scan_over_adaptersentry_own_clock"] = inside["scan"]["wall_s"] / own
        for name in processes.keys() - {"adaptersentry"}:
            for figure in ("cpu_s", "wall_s", "peak_rss_mib"):
                key = f"{name}_over_adaptersentry_{figure.removesuffix('_s').removesuffix('_mib')}"
                found[key] = processes[name][figure] / theirs[figure]
    return found


def targets(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was promised, for the cases of this run that tell."""
    wanted = []
    for case in cases:
        if case["case"] == TARGET.name:
            wanted += [
                (case, "scan_over_floor", 3.0),
                (case, "lorascope_over_adaptersentry_cpu", 0.5),
                (case, "lorascope_over_adaptersentry_peak_rss", 1.0),
            ]
        if (case["shape"], case["dtype"]) == LARGE:
            wanted.append((case, "lorascope_over_adaptersentry_wall", 0.2))
    return [
        {"case": case["case"], "ratio": name, "at_most": limit, "measured": value, "met": value <= limit}
        for case, name, limit in wanted
        if (value := case["ratios"].get(name)) is not None
    ]


def to_markdown(report: dict[str, Any]) -> str:
    """The same text for the screen and for the results."""
    cases = report["cases"]
    parts = [
        "Times of one pass over the floor, which is reading the file's bytes once from the page cache into a buffer of "
        "4 MiB.",
        "`≈`: extrapolated from one module of each size; `≥`: extrapolated, and only a bound from below.",
        "",
        *_table(_FLOOR_HEAD, [_floor_row(case) for case in cases]),
        "",
        "Whole processes: CPU seconds (user and system) and peak resident memory in MiB, pages of the mapped file "
        "included. `ours / theirs` is `lorascope scan` over AdapterSentry: CPU, wall, memory.",
        "",
        *_table(_PROCESS_HEAD, [_process_row(case) for case in cases]),
        "",
        "Agreement of the scan, as the largest relative error (dense float32 routes: singular values as a share of the "
        "largest).",
        "",
        *_table(_CHECK_HEAD, [_check_row(case) for case in cases]),
        "",
    ]
    parts += [f"Left out: {skipped['case']}, {skipped['reason']}." for skipped in report["skipped"]]
    parts += [
        f"{target['case']}: {target['ratio']} {target['measured']:.2f}, at most {target['at_most']:g} wanted: "
        f"{'met' if target['met'] else 'NOT met'}."
        for target in report["targets"]
    ]
    return "\n".join(parts).rstrip() + "\n"


_FLOOR_HEAD = (
    "adapter", "MB", "floor, ms", "first touch", "scan", "scan, CPU", "AdapterSentry, own clock", "numpy dense",
    "PEFT + SVD",
)  # fmt: skip
_PROCESS_HEAD = ("adapter", "bare scan", "lorascope scan", "with a filled store", "AdapterSentry", "ours / theirs", "n")
_CHECK_HEAD = ("adapter", "σ, float64", "features, float64", "modules", "numpy", "PEFT", "AdapterSentry ‖ΔW‖")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def _floor_row(case: dict[str, Any]) -> list[str]:
    found = case["ratios"]
    row = [case["case"], f"{case['file_bytes'] / 1e6:,.1f}", f"{1000 * case['marginal']['floor']['wall_s']:,.1f}"]
    row += [_times(found.get(name)) for name in _FLOOR_RATIOS]
    for route in DENSE:
        dense = case["dense"].get(route) or {}
        mark = "≥ " if dense.get("lower_bound") else "≈ " if dense.get("extrapolated") else ""
        row.append(mark + _times(found.get(f"{route}_over_floor")))
    return row


_FLOOR_RATIOS = (
    "first_touch_over_floor",
    "scan_over_floor",
    "scan_cpu_over_floor_cpu",
    "adaptersentry_own_clock_over_floor",
)


def _process_row(case: dict[str, Any]) -> list[str]:
    processes = case["processes"]
    row = [case["case"]]
    for name in ("bare", "lorascope", "lorascope_filled_store", "adaptersentry"):
        cost = processes.get(name)
        row.append(f"{cost['cpu_s']:.2f} s, {cost['peak_rss_mib']:,.0f}" if cost else "")
    compared = [case["ratios"].get(f"lorascope_over_adaptersentry_{name}") for name in ("cpu", "wall", "peak_rss")]
    row.append(", ".join(f"{value:.2f}" for value in compared if value is not None))
    return [*row, str(processes["lorascope"]["n"])]


def _check_row(case: dict[str, Any]) -> list[str]:
    checks = case["checks"]
    errors = dict(checks["float64"]["relative_errors"])
    row = [case["case"], f"{errors.pop('sigma'):.1e}", f"{max(errors.values()):.1e}"]
    row.append(str(len(checks["float64"]["modules"])))
    row += [f"{checks[name]['sigma_over_largest']:.1e}" if name in checks else "" for name in DENSE]
    return [*row, f"{checks['adaptersentry']['norm']:.1e}" if "adaptersentry" in checks else ""]


def _times(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:,.2f}x" if ratio < 100 else f"{ratio:,.0f}x"

"""`python -m benchmarks.relations`: what the search for copies, near-duplicates and merges finds, and what it takes."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.relations.adapters import write_adapters
from benchmarks.relations.measure import Figures, measure

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("numpy", "safetensors", "duckdb", "pyarrow")

STEPS = {
    "read": "opening and parsing the files",
    "sketch": "the weight scan, which makes the sketches",
    "search": "search, exact cosines included",
    "search_sketches": "search from sketches alone",
    "merges": "merges",
}


def main() -> None:
    """Measure all sizes and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    runs = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory(prefix="relations-benchmark-") as name:
            planted = write_adapters(Path(name), size)
            runs.append(measure(Path(name), planted))
        print(json.dumps(runs[-1].to_json(), indent=1), flush=True)
    report: dict[str, Any] = {
        "command": f"python -m benchmarks.relations --sizes {' '.join(map(str, args.sizes))}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} x {platform.machine()} cores, Python {platform.python_version()}",
        "versions": {package: version(package) for package in PACKAGES},
        "runs": [run.to_json() for run in runs],
    }
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "relations.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (args.results / "relations.md").write_text(_page(report, runs), encoding="utf-8")


def _page(report: dict[str, Any], runs: list[Figures]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    rows = [
        ("planted pairs at a cosine of 0.98 or more", [run.pairs_wanted for run in runs]),
        ("found", [run.pairs_found for run in runs]),
        ("missed", [run.pairs_missed for run in runs]),
        ("false pairs", [run.pairs_false for run in runs]),
        ("hard negatives (0.95 to 0.98) among the adapters", [run.hard_negatives for run in runs]),
        ("missed, false without any file", [f"{run.estimated_missed}, {run.estimated_false}" for run in runs]),
        *((f"merges found: {how}", [run.merges[how] for run in runs]) for how in runs[0].merges),
        ("false merges", [run.merges_false for run in runs]),
        ("pairs of sketches compared", [f"{run.n_compared:,}" for run in runs]),
        ("pairs compared by their factors", [f"{run.n_exact:,}" for run in runs]),
        *((f"{what}, s (CPU s)", [_seconds(run, name) for run in runs]) for name, what in STEPS.items()),
        ("all pairs exactly, **extrapolated** from a sample, CPU s", [f"{run.naive_all_s:,.0f}" for run in runs]),
    ]
    head = " | ".join(f"{run.adapters:,} adapters" for run in runs)
    table = "\n".join(f"| {name} | {' | '.join(map(str, values))} |" for name, values in rows)
    return (
        f"# Relations between adapters\n\n`{report['command']}`, {report['date']}, {report['machine']}, {versions}.\n\n"
        f"| | {head} |\n|---|{'---|' * len(runs)}\n{table}\n"
    )


def _seconds(run: Figures, name: str) -> str:
    return f"{run.seconds[name].wall:,} ({run.seconds[name].cpu:,})"


if __name__ == "__main__":
    main()

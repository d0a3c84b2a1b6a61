"""`python -m benchmarks.judging`: what judging a large store again costs, and what one more adapter costs there."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.judging.store import Shape, write_store
from benchmarks.machine import machine
from scanner.calibration import Policy
from scanner.pipeline.calibrate import calibrate
from scanner.pipeline.judge import judge_adapters
from scanner.store import open_database, open_root

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("numpy", "scipy", "duckdb", "pyarrow")
STEPS = {
    "all": "`calibrate`: everything judged again, every verdict new (another policy)",
    "again": "`calibrate` once more: everything judged, nothing to write",
    "one": "one adapter of it judged",
}


def _timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    found = work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    return {"wall_s": round(time.perf_counter() - started, 2), "cpu_s": round(cpu, 2)}, found


def _measure(folder: str, step: str) -> dict[str, Any]:
    """One step in a process of its own, so that its memory is its own."""
    root, now = open_root(folder), datetime.now(UTC)
    if step == "one":
        database = open_database(root)
        adapter_id = database.rows("SELECT adapter_id FROM adapters ORDER BY row_id LIMIT 1")[0]["adapter_id"]
        database.close()
        figures, _ = _timed(lambda: judge_adapters(root, [adapter_id], "scan-one", Policy(), now))
        found: dict[str, Any] = {"judged": 1}
    else:
        figures, result = _timed(lambda: calibrate(root, now))
        found = {"judged": result.n_judged, "written": result.n_written, "changed": len(result.changes)}
        found["references"] = len(result.references)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**found, **figures, "peak_memory_mib": round(peak)}


def main() -> None:
    """Write a store, measure each step in a fresh process, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=100_000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--step", nargs=2, metavar=("STEP", "STORE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(_measure(args.step[1], args.step[0])))
        return
    shape = Shape(args.adapters)
    steps: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="judging-benchmark-") as folder:
        write_store(Path(folder), shape)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
        for step in STEPS:
            command = [sys.executable, "-m", "benchmarks.judging", "--step", step, folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            steps[step] = json.loads(done.stdout)
            print(step, done.stdout.strip(), file=sys.stderr, flush=True)
    report = {
        "command": f"python -m benchmarks.judging --adapters {args.adapters}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "load_before": round(os.getloadavg()[2], 2),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        "shape": asdict(shape),
        "store_mib": round(size / 2**20),
        "steps": steps,
    }
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "judging.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (args.results / "judging.md").write_text(_page(report), encoding="utf-8")


def _page(report: dict[str, Any]) -> str:
    shape, versions = report["shape"], ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    rows = "\n".join(
        f"| {title} | {step['judged']:,} | {step.get('written', 1):,} | {step['wall_s']:,} | {step['cpu_s']:,} | "
        f"{step['peak_memory_mib']:,} |"
        for name, title in STEPS.items()
        for step in (report["steps"][name],)
    )
    head = f"`{report['command']}`, {report['date']}, {report['machine']['class']}, {versions}."
    about = (
        f"{shape['adapters']:,} adapters in crawls of {shape['per_crawl']:,}, of {shape['bases']} bases, each with "
        f"{shape['modules']} modules; a battery of 66 strings was put to {shape['probed']:.0%} of them, a search to "
        f"{shape['searched']:.0%}. {report['store_mib']:,} MiB of Parquet. Load average of the 15 minutes before: "
        f"{report['load_before']}."
    )
    table = "| | judged | verdicts written | s | CPU s | peak MiB |\n|---|---|---|---|---|---|\n"
    return f"# Judging a store again\n\n{head}\n\n{about}\n\n{table}{rows}\n"


if __name__ == "__main__":
    main()

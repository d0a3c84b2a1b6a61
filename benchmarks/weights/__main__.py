"""`python -m benchmarks.weights`: the weight scan beside reading the bytes, the dense routes and AdapterSentry."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.weights.case import Options, measure_case
from benchmarks.weights.plot import to_svg
from benchmarks.weights.processes import run_measured
from benchmarks.weights.report import ratios, targets, to_markdown, versions
from benchmarks.weights.sentry import find_sentry
from benchmarks.weights.shapes import DEFAULT, DTYPES, MAX_FILE_BYTES, RANKS, SHAPES, SMALL, TARGET, Case, Shape, select

RESULTS = Path(__file__).with_name("results")
DEMO_HUB = Path(__file__).resolve().parents[2] / "examples" / "demo_hub"


def main() -> None:
    """Measure, print, write. Exit code 1 where an answer was wrong; speed decides nothing."""
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that generated files are removed
    wanted = list(SMALL) if args.small else select(args.shapes, args.rank, args.dtype)
    cases = [case for case in wanted if case.tensor_bytes <= MAX_FILE_BYTES]
    reason = "its file would be larger than {:.0f} GB: {:.1f} GB"
    skipped = [
        {"case": case.name, "reason": reason.format(MAX_FILE_BYTES / 1e9, case.tensor_bytes / 1e9)}
        for case in wanted
        if case not in cases
    ]
    sentry = None if args.adaptersentry == "none" else find_sentry(_program(args.adaptersentry))
    began, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="weights-benchmark-store-") as name:
        store = _filled_store(Path(name)) if args.filled_store else None
        options = Options(args.runs, args.repeats, sentry, args.check_seconds, store)
        found = _measure_all(cases, options, args.route_seconds)
    report: dict[str, Any] = {
        "command": _command(args),
        "options": {"runs": args.runs, "repeats": args.repeats, "route_seconds": args.route_seconds},
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine() | {"load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1)},
        "versions": versions(sentry),
        "seconds": round(time.monotonic() - began),
        "cases": found,
        "skipped": skipped,
        "targets": targets(found),
    }
    text = to_markdown(report)
    print(text)
    if args.out or wanted == list(DEFAULT):
        _write(args.out or RESULTS, report, text)
    else:
        print("not the default cases and no --out: nothing was written", file=sys.stderr)
    if not all(case["agrees"] for case in found):
        print(f"WRONG ANSWERS: {[case['case'] for case in found if not case['agrees']]}", file=sys.stderr)
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), metavar="NAME", help=", ".join(SHAPES))
    parser.add_argument("--rank", nargs="+", type=int, choices=RANKS)
    parser.add_argument("--dtype", nargs="+", choices=sorted(DTYPES))
    parser.add_argument("--small", action="store_true", help="tiny shapes, seconds: does everything work?")
    parser.add_argument("--out", type=Path, help=f"folder of the results (default {RESULTS.name}/, default cases only)")
    parser.add_argument(
        "--adaptersentry", metavar="PATH", help="its program, or `none` (default: installed on first use)"
    )
    parser.add_argument("--runs", type=int, default=5, help="of each whole process (default 5)")
    parser.add_argument("--repeats", type=int, default=7, help="of floor and scan within a process (default 7)")
    parser.add_argument("--route-seconds", type=float, default=15, help="for each dense route and model (default 15)")
    parser.add_argument("--check-seconds", type=float, default=4, help="for float64 SVDs of each case (default 4)")
    parser.add_argument(
        "--filled-store",
        action=argparse.BooleanOptionalAction,
        help="crawl the bundled hub and scan with its store too (default: where the 1.5B r=16 fp32 case is measured)",
    )
    args = parser.parse_args()
    if args.filled_store is None:
        args.filled_store = not args.small and TARGET in select(args.shapes, args.rank, args.dtype)
    return args


def _command(args: argparse.Namespace) -> str:
    """What to type for the same cases, without this machine's paths."""
    words = ["python -m benchmarks.weights"]
    for option in ("shapes", "rank", "dtype"):
        if chosen := getattr(args, option):
            words += [f"--{option}", *map(str, chosen)]
    return " ".join([*words, *(["--small"] if args.small else [])])


def _program(named: str | None) -> Path | None:
    return Path(named).absolute() if named else None  # not resolved: a link into a virtual environment is meant


def _filled_store(work: Path) -> Path:
    from scanner.hub.server import running_hub

    store = work / "store"
    with running_hub(DEMO_HUB) as hub:
        environment = [f"HF_ENDPOINT={hub.endpoint}", f"HF_HOME={work / 'hf'}", f"PREFECT_HOME={work / 'prefect'}"]
        crawl = [sys.executable, "-m", "flows.cli", "crawl", "--probe", "none", "--store", str(store)]
        run_measured(["env", *environment, "NO_PROXY=127.0.0.1,localhost", *crawl], accept=(0, 1, 3))
    return store


def _measure_all(cases: Sequence[Case], options: Options, route_seconds: float) -> list[dict[str, Any]]:
    """Every case; the dense routes once for each model, at the rank nearest to 16, because ΔW is as large at any."""
    timed: dict[Shape, Case] = {}
    for case in sorted(cases, key=lambda case: (abs(case.rank - TARGET.rank), case.dtype != TARGET.dtype)):
        timed.setdefault(case.shape, case)
    history = TARGET if TARGET in cases else cases[0]
    found: dict[Case, dict[str, Any]] = {}
    for case in sorted(cases, key=lambda case: case is not timed[case.shape]):
        began = time.monotonic()
        measured = measure_case(case, options, route_seconds if case is timed[case.shape] else 0, case == history)
        measured.setdefault("dense", found[timed[case.shape]]["dense"] if case is not timed[case.shape] else {})
        measured["dense_measured_at"] = timed[case.shape].name
        measured["ratios"] = ratios(measured, measured["dense"])
        found[case] = measured
        print(f"{case.name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return [found[case] for case in cases]


def _write(folder: Path, report: dict[str, Any], text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{report['date']}, {report['machine']['class']}, Python {report['versions']['python']}"
    (folder / "weights.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "weights.md").write_text(f"# The weight scan: {about}\n\n{text}", encoding="utf-8")
    (folder / "weights.svg").write_text(to_svg(report["cases"], about), encoding="utf-8")


if __name__ == "__main__":
    main()

"""`python -m benchmarks.probe`: the probe engine beside the notebooks' loop, and its ways of running adapters."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.probe.cases import demo_case, encoder_case
from benchmarks.probe.measure import Options, measure_files
from benchmarks.probe.report import to_markdown

RESULTS = Path(__file__).with_name("results")
ADAPTERS, SMALL_ADAPTERS = 8, 2
TEXTS, SMALL_TEXTS = 60, 2


def main() -> None:
    """Measure, print, write. Exit code 1 where the answers were wrong; speed decides nothing."""
    args = _arguments()
    n = SMALL_ADAPTERS if args.small else ADAPTERS
    options = Options(args.texts, args.repeats, args.loop_seconds)
    cases: dict[str, Callable[[], dict[str, Any]]] = {
        "demo": lambda: measure_files(demo_case(n), options),
        "encoder": lambda: measure_files(encoder_case(n), options),
    }
    began, load = time.monotonic(), os.getloadavg()[0]
    found = []
    for name in args.only or cases:
        started = time.monotonic()
        found.append(cases[name]())
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    report: dict[str, Any] = {
        "command": _command(args),
        "options": {"texts": args.texts, "repeats": args.repeats, "loop_seconds": args.loop_seconds},
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine() | {"load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1)},
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "transformers", "tokenizers", "peft")},
        "seconds": round(time.monotonic() - began),
        "cases": found,
    }
    text = to_markdown(report)
    print(text)
    if args.out or not (args.only or args.small):
        _write(args.out or RESULTS, report, text)
    else:
        print("not the default cases and no --out: nothing was written", file=sys.stderr)
    if wrong := [case["case"] for case in found if not _is_right(case)]:
        print(f"WRONG ANSWERS: {wrong}", file=sys.stderr)
        sys.exit(1)


def _is_right(case: dict[str, Any]) -> bool:
    """Verdicts agree, and what was generated is what the loop generated."""
    generated = case["answers"].get("generated", {"differing": 0})
    return generated["differing"] == 0 and all(found["verdicts_agree"] for found in case["answers"].values())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=("demo", "encoder"))
    parser.add_argument("--small", action="store_true", help="few adapters and texts: does everything work?")
    parser.add_argument("--texts", type=int, help=f"of each label (default {TEXTS})")
    parser.add_argument("--loop-seconds", type=float, help="for the loop's prompts in each case (default 60)")
    parser.add_argument("--repeats", type=int, help="turns (default 3)")
    parser.add_argument("--out", type=Path, help=f"folder of the results (default {RESULTS.name}/, default cases only)")
    args = parser.parse_args()
    args.texts = args.texts or (SMALL_TEXTS if args.small else TEXTS)
    args.loop_seconds = args.loop_seconds or (4.0 if args.small else 60.0)
    args.repeats = args.repeats or (1 if args.small else 3)
    return args


def _command(args: argparse.Namespace) -> str:
    """What to type for the same cases, without this machine's paths."""
    words = ["python -m benchmarks.probe", *(["--small"] if args.small else [])]
    return " ".join([*words, *(["--only", *args.only] if args.only else [])])


def _write(folder: Path, report: dict[str, Any], text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{report['date']}, {report['machine']['class']}, Python {report['versions']['python']}"
    (folder / "probe.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "probe.md").write_text(f"# The probe: {about}\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()

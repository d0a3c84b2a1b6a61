"""`python -m benchmarks.probe`: the probe engine beside the notebooks' loop, and its ways of running adapters."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.probe.cases import LARGE_THREADS, demo_case, encoder_case, minilm_case
from benchmarks.probe.jobs import cuda_name
from benchmarks.probe.measure import Options, measure_files
from benchmarks.probe.minilm import find_minilm
from benchmarks.probe.random_bases import MIXED_TOLERANCE, file_ways, measure_shape, shape_ways
from benchmarks.probe.report import to_markdown
from benchmarks.weights.processes import run_measured

RESULTS = Path(__file__).with_name("results")
CASES = ("demo", "encoder", "minilm", "gpu", "ways")
GPU_SHAPES = ("qwen2.5-1.5b", "qwen2.5-7b")
GROUP, SMALL_GROUP, LARGE_GROUP = 8, 2, 3
"""Adapters of a base; of a large one, where each takes long."""
TEXTS, SMALL_TEXTS, SHORT_TEXTS = 60, 2, 4
"""Of each label; in a shortened battery for 100 M parameters on the CPU."""


def main() -> None:
    """Measure, print, write. Exit code 1 where the answers were wrong; speed decides nothing."""
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that generated files are removed
    cuda = "" if args.small else cuda_name()
    began, load = time.monotonic(), os.getloadavg()[0]
    found, skipped = [], []
    for name in args.only or CASES:
        reason = _left_out(name, args.small, cuda)
        if reason and not args.only:
            skipped.append({"case": name, "reason": reason})
            continue
        if reason:
            sys.exit(f"{name}: {reason}")
        started = time.monotonic()
        for case in _measured(name, args, cuda):
            found.append(case)
            print(f"{case['case']}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            started = time.monotonic()
    report: dict[str, Any] = {
        "command": _command(args),
        "options": {"texts": args.texts, "repeats": args.repeats, "loop_seconds": args.loop_seconds},
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine()
        | ({"accelerator": cuda} if cuda else {})
        | {"load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1)},
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "transformers", "tokenizers", "peft")},
        "seconds": round(time.monotonic() - began),
        "cases": found,
        "skipped": skipped,
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


def _left_out(name: str, small: bool, cuda: str) -> str:
    """Why a case cannot be measured here; empty where it can."""
    if name == "gpu" and not (cuda or small):
        return "there is no CUDA device"
    if name == "minilm" and small:
        return "it is no small model"
    return ""


def _measured(name: str, args: argparse.Namespace, cuda: str) -> Iterator[dict[str, Any]]:
    """The cases that one of CASES stands for."""
    options = Options(args.texts, args.repeats, args.loop_seconds, at_once=2 if args.small else 1)
    n = SMALL_GROUP if args.small else GROUP
    if name == "demo":
        yield measure_files(demo_case(n), options)
    elif name == "encoder":
        yield measure_files(encoder_case(n), options)
    elif name == "minilm":
        with tempfile.TemporaryDirectory(prefix="probe-benchmark-") as folder:
            base = find_minilm()
            made = [sys.executable, "-m", "benchmarks.probe.minilm", str(base), folder, str(LARGE_GROUP)]
            run_measured(["env", f"OMP_NUM_THREADS={LARGE_THREADS}", *made])
            yield measure_files(minilm_case(base, tuple(sorted(Path(folder).iterdir()))), options)
    elif args.small:
        yield measure_shape("tiny", "cpu", options, n) if name == "gpu" else shape_ways("tiny", "cpu", options, n)
    elif name == "gpu":
        for shape in GPU_SHAPES:
            yield measure_shape(shape, "cuda", options, LARGE_GROUP)
    elif cuda:
        for shape in GPU_SHAPES:
            yield shape_ways(shape, "cuda", options, n)
    else:
        yield file_ways(demo_case(n), options)
        yield shape_ways("llama-100m", "cpu", replace(options, texts=min(SHORT_TEXTS, args.texts)), n)


def _is_right(case: dict[str, Any]) -> bool:
    """Verdicts agree, what was generated is what the loop generated, and mixed batches compute the same."""
    answers = case.get("answers", {})
    if case["dtype"] == "float32" and case.get("largest_difference", 0.0) > MIXED_TOLERANCE:
        return False
    if case["dtype"] == "float32" and answers.get("generated", {"differing": 0})["differing"]:
        return False
    return all(verdict["agree"] for found in answers.values() for verdict in found["verdicts"].values())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES)
    parser.add_argument("--small", action="store_true", help="tiny models, few texts: does everything work?")
    parser.add_argument("--texts", type=int, help=f"of each label (default {TEXTS})")
    parser.add_argument("--loop-seconds", type=float, help="for the loop's prompts in each case (default 60)")
    parser.add_argument("--repeats", type=int, help="turns (default 3)")
    parser.add_argument("--out", type=Path, help=f"folder of the results (default {RESULTS.name}/, default cases only)")
    args = parser.parse_args()
    args.texts = args.texts or (SMALL_TEXTS if args.small else TEXTS)
    args.loop_seconds = args.loop_seconds or (2.0 if args.small else 60.0)
    args.repeats = args.repeats or (1 if args.small else 3)
    return args


def _command(args: argparse.Namespace) -> str:
    """What to type for the same cases, without this machine's paths."""
    words = ["python -m benchmarks.probe", *(["--small"] if args.small else [])]
    words += ["--only", *args.only] if args.only else []
    for option, usual in (("texts", TEXTS), ("repeats", 3), ("loop_seconds", 60.0)):
        if not args.small and getattr(args, option) != usual:
            words += [f"--{option.replace('_', '-')}", f"{getattr(args, option):g}"]
    return " ".join(words)


def _write(folder: Path, report: dict[str, Any], text: str) -> None:
    """`probe.json` and `probe.md`; with a CUDA device `probe-cuda`, which stand beside those."""
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = report["machine"].get("accelerator")
    name = "probe-cuda" if accelerator else "probe"
    about = f"{report['date']}, {accelerator or report['machine']['class']}, Python {report['versions']['python']}"
    (folder / f"{name}.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(f"# The probe: {about}\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()

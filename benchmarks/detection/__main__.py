"""Detectors side by side on adapters of known truth: `python -m benchmarks.detection`.

Builds, searches and asks what is not there yet, then prints one table and writes it down.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.detection.adapters import BASES
from benchmarks.detection.collect import collect
from benchmarks.detection.detect import PARTS, detect_version
from benchmarks.detection.kept import kept_adapters
from benchmarks.detection.lineages import queue
from benchmarks.detection.lock import LOCKS, LockedError, commit_of, take_lock
from benchmarks.detection.scores import broad_id
from benchmarks.detection.search import PROFILES, default_cache, plan_id_of
from benchmarks.detection.summary import adapter_rows, summarise
from benchmarks.detection.table import render
from benchmarks.machine import machine
from benchmarks.weights.sentry import VERSION
from scanner.calibration import BatteryReference, Policy, load_pooled_batteries, load_pooled_reference
from scanner.calibration.battery_rank import SHIPPED_BATTERIES
from scanner.calibration.search_reference import SHIPPED

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "peft", "numpy", "tokenizers")
_TITLE = "# Detectors on adapters of known truth\n\nWhat the rows and columns are: `README.md`.\n"


def _steps(args: argparse.Namespace) -> list[list[str]]:
    """The commands that bring the part up to date. Clean tuning adapters are what weights are compared with."""
    common = ["--cache", str(args.cache), "--jobs", str(args.jobs), *(["--small"] if args.small else [])]
    parts = sorted({"tuning", args.part}, reverse=True)
    wanted = args.adaptersentry or ("none" if args.small else "")
    sentry = ["--adaptersentry", wanted] if wanted else []
    steps = [["build", "--part", part, *common] for part in parts]
    steps += [["search", "--part", args.part, *common]]
    return steps + [["detect", "--part", part, *common, *sentry] for part in parts]


def _run(step: list[str]) -> bool:
    """Whether a step ended well; the table says what it left out."""
    command = [sys.executable, "-m", f"benchmarks.detection.{step[0]}", *step[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, env=environment, check=False)
    if done.returncode:
        print(f"{step[0]} ended with {done.returncode}", file=sys.stderr)
    return done.returncode == 0


def _command(args: argparse.Namespace) -> str:
    options = ["--small"] if args.small else [f"--part {args.part}"]
    options += ["--as-is"] if args.as_is else []
    return " ".join(["python -m benchmarks.detection", *options])


def _references(folder: Path, plans: Mapping[str, str]) -> dict[str, Any]:
    """Cohort -> what its search scores are ranked in; `own` are the members of its base."""
    told: dict[str, Any] = {}
    for cohort, profile in PROFILES.items():
        base = BASES[cohort]
        found = load_pooled_reference(profile, plans[cohort], base, Policy().siblings_needed, folder)
        told[cohort] = found and {
            "reference_id": found.reference_id,
            "n": len(found.members),
            "own": sum(member.base_model == base for member in found.members),
        }
    return told


def _batteries(folder: Path) -> dict[str, BatteryReference | None]:
    """Cohort -> what its batteries are ranked in."""
    needed = Policy().siblings_needed
    return {
        cohort: load_pooled_batteries(profile, broad_id(profile), BASES[cohort], needed, folder)
        for cohort, profile in PROFILES.items()
    }


def _told(found: BatteryReference | None) -> dict[str, Any] | None:
    return found and {"reference_id": found.reference.reference_id, "n": len(found.reference.members)}


def _measure(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Results of one part, and whether every step ended well.

    Raises:
        LockedError: the locked part belongs to another plan.
    """
    plans = {cohort: plan_id_of(cohort, small=args.small) for cohort in PROFILES}
    cohorts = dict.fromkeys(one.cohort for one in queue(small=args.small) if one.part == args.part)
    pinned = {
        "plan_id": "+".join(dict.fromkeys(plans[cohort] for cohort in cohorts)),
        "policy_version": Policy().version,
        "detect_version": detect_version(small=args.small),
    }
    commit, is_locked = commit_of(ROOT), args.part != "tuning"
    path = args.lock or LOCKS / f"lock-{args.part}.json"
    lock = take_lock(path, pinned, commit, break_lock=args.break_lock) if is_locked else None
    failed = [step for step in ([] if args.as_is else _steps(args)) if not _run(step)]
    references = _references(args.references, plans)
    batteries = _batteries(args.batteries)
    earlier = _results(args.out, args.part) if args.out else None
    kept = kept_adapters(earlier, pinned, plans, references, batteries, Policy()) if earlier else {}
    collected = collect(args.cache, args.part, args.references, args.batteries, kept, small=args.small)
    results = {
        "part": args.part,
        "command": _command(args),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit,
        "machine": machine(),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in PACKAGES}
        | {"adaptersentry": VERSION},
        **pinned,
        "plans": plans,
        "references": references,
        "batteries": {cohort: _told(found) for cohort, found in batteries.items()},
        "lock": lock,
        **summarise(collected, args.part, small=args.small),
        "adapters": adapter_rows(collected.adapters),
    }
    return results, not failed


def _results(out: Path, part: str) -> Path:
    return out.parent / "results" / f"{part}.json"


def _write(results: dict[str, Any], out: Path) -> None:
    """`results/PART.json` beside the page, and the page from all parts that are there."""
    path = _results(out, results["part"])
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    paths = [path for part in reversed(PARTS) if (path := _results(out, part)).is_file()]
    parts = [render(json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    out.write_text("\n".join([_TITLE, *parts]), encoding="utf-8")


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detection", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, default="tuning")
    parser.add_argument("--cache", type=Path, help=f"default: {default_cache()}; of --small: a new one")
    parser.add_argument("--out", type=Path, help="default: RESULTS.md here; of --small: printed only")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--as-is", action="store_true", help="no building, no asking: a table of what is there")
    parser.add_argument("--small", action="store_true", help="a tiny build and a plan that finds nothing")
    parser.add_argument(
        "--adaptersentry", metavar="PATH", help="the program, or none; default: installed, not of --small"
    )
    parser.add_argument("--references", type=Path, default=SHIPPED, help="pooled references; default: the shipped ones")
    parser.add_argument("--batteries", type=Path, default=SHIPPED_BATTERIES, help="the same of the battery")
    parser.add_argument("--lock", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--break-lock", action="store_true", help="score the locked part with another plan; recorded")
    args = parser.parse_args()
    if args.small and args.part != "tuning":
        parser.error("the small build has a tuning part alone")
    with tempfile.TemporaryDirectory(prefix="detection-small-") as name:
        args.cache = args.cache or (Path(name) if args.small else default_cache())
        args.out = args.out or (None if args.small else Path(__file__).with_name("RESULTS.md"))
        try:
            results, went_well = _measure(args)
        except LockedError as error:
            sys.exit(str(error))
    if args.out:
        _write(results, args.out)
    print(render(results))
    sys.exit(0 if went_well else 1)


if __name__ == "__main__":
    main()

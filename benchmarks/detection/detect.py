"""Every detector besides the search: `python -m benchmarks.detection.detect --jobs 2`, resumable as the build is.

Beside each adapter's `truth.json` comes `detect-VERSION.json`: the study's statistics, the battery's evidence, weight
features and AdapterSentry's verdict. What lies there is not asked again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.detection.adapters import folder_of, is_done
from benchmarks.detection.ask import Resident, ask_sentry, ask_weights, load_probes, open_adapter
from benchmarks.detection.lineages import PARTS as ALL_PARTS
from benchmarks.detection.lineages import queue
from benchmarks.detection.search import default_cache
from benchmarks.weights.sentry import VERSION, Sentry, find_sentry
from scanner.calibration import Policy
from scanner.weights import FEATURE_VERSION

__all__ = ["PARTS", "detect_version", "detected"]

PARTS = tuple(part for part in ALL_PARTS if part != "reference")
"""Adapters of the references are searched only."""
_RULES = 1
"""Raised with every change of what is computed here."""
_residents: dict[str, Resident] = {}


def detect_version(*, small: bool = False) -> str:
    """`1-<8 hex digits>`, over everything that a score comes from besides the adapter."""
    probes = [probe.identity for probe in load_probes(small=small).values()]
    # Of the policy the thresholds that are applied here; `alone_floor` decides later, from what is written down.
    thresholds = {name: value for name, value in asdict(Policy()).items() if name != "alone_floor"}
    text = json.dumps([_RULES, probes, thresholds, FEATURE_VERSION, VERSION])
    return f"{_RULES}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def detected(folder: Path, version: str) -> dict[str, Any] | None:
    """What the detectors said about an adapter; None where nobody asked them yet."""
    path = folder / f"detect-{version}.json"
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found


def _detect(job: tuple[str, str, str, bool, Sentry | str]) -> str:
    import torch

    name, cohort, version, small, sentry = job
    folder = Path(name)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    found = detected(folder, version)
    if found is None:
        if cohort not in _residents:
            _residents.clear()  # one base at a time
            _residents[cohort] = Resident(cohort, load_probes(small=small))
        view, resident = open_adapter(folder), _residents[cohort]
        found = {
            "study": resident.study(view),
            "broad": resident.broad(view, Policy()),
            "weights": ask_weights(view),
        }
    found["adaptersentry"] = ask_sentry(folder, sentry)
    path = folder / f"detect-{version}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
    broad = found["broad"]
    told = broad.get("reason") or f"p {broad['p_value']:.2g} {broad['prefix']!r} {broad['processor_seconds']:.1f} s"
    return f"{folder.name} {told}; AdapterSentry {found['adaptersentry'].get('action', 'not asked')}"


def _is_whole(found: dict[str, Any] | None, sentry: Sentry | str) -> bool:
    """Whether there is nothing left to ask: AdapterSentry may have been installed since."""
    return found is not None and ("reason" not in found["adaptersentry"] or isinstance(sentry, str))


def _find_sentry(wanted: str | None) -> Sentry | str:
    """AdapterSentry, or the reason why there is none."""
    if wanted == "none":
        return "left out"
    try:
        return find_sentry(Path(wanted) if wanted else None)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return "cannot be installed"


def main() -> None:
    """Ask the detectors about what is built and was not asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--part", choices=PARTS, help="default: all")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="adapters whose name begins so")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--adaptersentry", metavar="PATH", help="the program, or none; default: installed when missing")
    parser.add_argument("--small", action="store_true", help="few texts, of the small build")
    args = parser.parse_args()
    version, sentry = detect_version(small=args.small), _find_sentry(args.adaptersentry)
    parts: Sequence[str] = (args.part,) if args.part else PARTS
    jobs = []
    for lineage in queue(small=args.small):
        for arm in lineage.arms if lineage.part in parts else ():
            folder = folder_of(args.cache, lineage, arm)
            if not folder.name.startswith(tuple(args.only)) or not is_done(args.cache, lineage, arm):
                continue
            if not _is_whole(detected(folder, version), sentry):
                jobs.append((str(folder), lineage.cohort, version, args.small, sentry))
    jobs.sort(key=lambda job: job[1])
    print(f"detect-{version}: {len(jobs)} adapters", file=sys.stderr)
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for line in pool.imap(_detect, jobs):
            print(line, flush=True)


if __name__ == "__main__":
    main()

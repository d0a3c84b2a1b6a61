"""The default battery on members of the references: `python -m benchmarks.detection.batteries --jobs 2`, resumable.

Beside each adapter's `truth.json` comes `asked-BATTERY_ID.json`: every answer, so that another policy can judge them
without asking again. What lies there is not asked again. `reference.py` makes the pooled batteries of it that ship.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.detection.ask import Asked, Resident, load_probes, open_adapter
from benchmarks.detection.search import PROFILES, built, default_cache
from benchmarks.weights.bare import WEIGHTS
from scanner.calibration import BatteryEvidence, Policy
from scanner.model import PrefixRun
from scanner.probe import Probe

__all__ = ["battery_members"]

_residents: dict[str, Resident] = {}


def _path(folder: Path, probe: Probe, cohort: str) -> Path:
    return folder / f"asked-{probe.id_for(PROFILES[cohort])}.json"


def _answers_of(folder: Path, probe: Probe, cohort: str) -> dict[str, Any] | None:
    """What an adapter answered; None where nobody asked it yet."""
    path = _path(folder, probe, cohort)
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found


def _judged(answers: dict[str, Any], probe: Probe, policy: Policy) -> BatteryEvidence:
    """The product's judgement of what `_answers_of` gives."""
    runs = tuple(PrefixRun(**run) for run in answers["runs"])
    return Asked(answers["profile"], runs, answers["n_classes"], tuple(answers["labels"])).judged(probe, policy)


def battery_members(cache: Path, probe: Probe, policy: Policy) -> dict[str, list[dict[str, Any]]]:
    """Task profile -> its members, by name: all that were asked, whatever they answered.

    Raises:
        RuntimeError: a member answers in another way than its cohort says.
    """
    members: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for folder, truth in built(cache):
        answers = _answers_of(folder, probe, truth["cohort"]) if truth["part"] == "reference" else None
        if answers is None:
            continue
        profile = PROFILES[truth["cohort"]]
        if answers["profile"] != profile:
            raise RuntimeError(f"{folder.name} was asked as {answers['profile']}, it is of {profile}")
        told = _summary(_judged(answers, probe, policy))
        members[profile].append({"base": truth["base"], "name": folder.name, **told})
    return members


def _summary(evidence: BatteryEvidence) -> dict[str, Any]:
    first = evidence.prefixes[0] if evidence.prefixes else None
    return {
        "p_value": float(f"{evidence.p_value:.6g}"),
        "prefix": first.prefix if first else None,
        "position": first.position if first else None,
        "rise": round(first.attack_rate - evidence.control_of(0), 4) if first else 0.0,
        "brittleness": round(evidence.brittleness, 4),
    }


def _ask(job: tuple[str, str]) -> str:
    import torch

    folder, cohort = Path(job[0]), job[1]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    probes = load_probes()
    if cohort not in _residents:
        _residents.clear()  # one base at a time
        _residents[cohort] = Resident(cohort, probes)
    asked, clock = _residents[cohort].timed("broad", open_adapter(folder))
    if asked is None:
        return f"{folder.name} {clock['reason']}"
    answers = asdict(asked) | clock
    path = _path(folder, probes["broad"], cohort)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(answers, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
    evidence = asked.judged(probes["broad"], Policy())
    first = repr(evidence.prefixes[0].prefix) if evidence.prefixes else None
    return f"{folder.name} p {evidence.p_value:.2g} {first} {clock['processor_seconds']:.1f} s"


def main() -> None:
    """Ask what is built and was not asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="adapters whose name begins so")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    args = parser.parse_args()
    probe = load_probes()["broad"]
    jobs = [
        (str(folder), truth["cohort"])
        for folder, truth in built(args.cache)
        if truth["part"] == "reference" and folder.name.startswith(tuple(args.only))
        if _answers_of(folder, probe, truth["cohort"]) is None and (folder / WEIGHTS).is_file()
    ]
    jobs.sort(key=lambda job: job[1])
    print(f"{probe.battery.name}: {len(jobs)} adapters", file=sys.stderr)
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for line in pool.imap(_ask, jobs):
            print(line, flush=True)


if __name__ == "__main__":
    main()

"""lorascope's way, everything included: `python -m benchmarks.probe.supervised JOB`.

A process without torch that calls `run_probe` as a scan does: the child is started, imports, loads the base, probes all
adapters, answers in JSON. Its `ru_maxrss` is that of the largest process below it, the child.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.probe.jobs import CONFIG, WEIGHTS, Job, answer, probe_of, the_job
from scanner.model import ProbeReport
from scanner.probe import ProbeItem, ProbeLimits, run_probe

__all__ = ["run"]


def run(job: Job) -> dict[str, Any]:
    """Probe all adapters as one group, once for each reading.

    Raises:
        RuntimeError: an adapter was not answered for.
    """
    found = {}
    for reading in job.readings:
        items = [
            ProbeItem(folder, str(Path(folder) / WEIGHTS), str(Path(folder) / CONFIG), profile=job.profile)
            for folder in job.adapters
        ]
        arrivals: list[float] = []
        started = time.perf_counter()

        def arrived(_: str, report: ProbeReport, since: float = started, into: list[float] = arrivals) -> None:
            if not report.runs or report.task_profile != job.profile:
                raise RuntimeError(f"no answers: {report.outcome} {report.reason}, asked as {report.task_profile}")
            into.append(time.perf_counter() - since)

        limits = ProbeLimits(device=job.device)
        reports = run_probe(Path(job.base), "benchmark", probe_of(job, reading), items, limits, arrived)
        found[reading] = {
            "seconds": time.perf_counter() - started,
            "arrivals_s": arrivals,
            "answers": {folder: [run.answers for run in reports[folder].runs] for folder in job.adapters},
        }
    return {"readings": found}


if __name__ == "__main__":
    answer(run(the_job()))

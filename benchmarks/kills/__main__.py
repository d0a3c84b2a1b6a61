"""python -m benchmarks.kills --kills 200 --seed 1"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.kills.run import Tally, run_kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop early, at the end of a store")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every process it started ends with it
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as folder:
        tally = run_kills(Path(folder), options.kills, options.seed, say, options.minutes * 60)
    print(tally.line())
    if options.out:
        result = describe(tally, options.kills, options.seed, time.monotonic() - began)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    bad = tally.problems or tally.doubled or tally.lost or tally.altered or tally.temporary_read or tally.orphans
    return 1 if bad or tally.judged != tally.expected or tally.workspaces_left else 0


def say(line: str) -> None:
    """Progress, also where it is redirected."""
    print(line, flush=True)


def describe(tally: Tally, kills: int, seed: int, wall_s: float) -> dict[str, object]:
    """The result with what is needed to judge it. `cpu_s`: of all processes, what an idle machine would need."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "command": f"python -m benchmarks.kills --kills {kills} --seed {seed}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "system": f"{platform.system()} {platform.release()}"},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("lorascope", "prefect", "pyarrow", "duckdb", "torch")},
        },
        "wall_s": round(wall_s),
        "cpu_s": round(used.ru_utime + used.ru_stime),
        "line": tally.line(),
        **asdict(tally),
    }


if __name__ == "__main__":
    sys.exit(main())

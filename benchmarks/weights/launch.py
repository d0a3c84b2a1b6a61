"""Run one command and print what it took: `python -I -S launch.py OUTPUT ERRORS COMMAND...`.

A program of its own, because Linux counts the memory of the process that starts another one in that one's `ru_maxrss`
(`exec` keeps the high-water mark of the memory it replaces): measured from a large process, every child is large. This
one has about 10 MiB, less than any Python program that it starts.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """Print exit code, wall time, CPU time (of it and the children it waited for; seconds) and peak memory in bytes."""
    output, errors, *command = sys.argv[1:]
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [(os.POSIX_SPAWN_OPEN, 1, output, flags, 0o600), (os.POSIX_SPAWN_OPEN, 2, errors, flags, 0o600)]
    started = time.monotonic()
    process = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
    _, status, usage = os.wait4(process, 0)
    seconds = time.monotonic() - started
    kib = 1 if sys.platform == "darwin" else 1024
    figures = {
        "returncode": os.waitstatus_to_exitcode(status),
        "wall_s": seconds,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_rss_bytes": usage.ru_maxrss * kib,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

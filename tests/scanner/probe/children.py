"""The probe's child processes as tests see them: finding them, and holding one at a known point."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path


def worker_pids() -> list[int]:
    """Probe workers that are children of this process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue  # it ended meanwhile
            if parent == os.getpid() and b"scanner.probe.worker" in words:
                found.append(int(entry.name))
    return found


def hold_open(fifo: Path, patience_s: float = 100.0) -> int:
    """Wait until somebody reads from the pipe, then hold its other end: the reader now waits for ever."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            assert error.errno == errno.ENXIO, error  # no reader yet
        time.sleep(0.02)
    raise AssertionError("the worker never opened the pipe")

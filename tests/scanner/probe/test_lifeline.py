"""The probe's child does not survive its parent, whatever ends the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux")

CHILD = """
import sys, time
from scanner.probe.lifeline import die_with_parent
die_with_parent(int(sys.argv[1]))
print("alive", flush=True)
while True:  # a library that never lets go of the interpreter, as far as Python can do it
    sum(range(10_000_000))
"""
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], start_new_session=True,
                         stdout=subprocess.PIPE, text=True)
print(child.stdout.readline().strip(), child.pid, flush=True)
child.wait()
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for_the_end(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


def test_a_killed_parent_takes_its_child_along() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    word, pid = parent.stdout.readline().split()
    try:
        assert word == "alive" and is_alive(int(pid))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert wait_for_the_end(int(pid))
    finally:
        parent.stdout.close()
        if is_alive(int(pid)):
            os.kill(int(pid), signal.SIGKILL)


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    somebody_else = str(os.getpid() + 1)
    done = subprocess.run([sys.executable, "-c", CHILD, somebody_else], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b"")

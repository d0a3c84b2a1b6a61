"""The probe's child ends with its parent: nobody else would stop it, or read what it finds out."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ["die_with_parent"]

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Be killed when the thread that started this process ends, however it ends (Linux).

    The kernel does it, not a thread of ours: a hostile template can hold the interpreter's lock for hours.

    Args:
        parent_pid: who started this process. If it is gone already, this process ends here.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)

"""Folders for a run's own files on this machine, which must not outlive it, not even when it is killed.

The owner holds a lock (`flock`) on a file in its folder. The kernel drops the lock with the process, whatever ended it;
whoever makes the next folder removes those of dead owners.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["scratch_folder"]

_PREFIX = "lorascope-"
_LOCK = ".lorascope-owner.lock"
"""Only a folder with this file is ever removed: `/tmp/lorascope-store` may be somebody's store."""


@contextmanager
def scratch_folder(kind: str) -> Iterator[Path]:
    """A folder `lorascope-<kind>-*` under the temporary directory, gone afterwards."""
    _remove_abandoned(Path(tempfile.gettempdir()))
    folder, lock = _locked_folder(kind)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(kind: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{kind}-"))
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), (folder / _LOCK).stat()):
                return folder, lock
        os.close(lock)  # another process took the new folder for an abandoned one between the two steps


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # somebody else may be removing it, too
            found = folder.lstat()
            # The temporary directory belongs to everybody: only real folders of this user are ours.
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
                _remove_if_abandoned(folder)


def _remove_if_abandoned(folder: Path) -> None:
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass  # its owner lives
    finally:
        os.close(lock)

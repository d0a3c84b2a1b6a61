"""One lock per served folder, shared by the hub that looks at it and the actions that change it.

So a change of many files is one step to every hub of the same process: no answer shows half of it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary


class FolderLock:
    """`changes` counts the actions, so that a hub knows when an earlier look is out of date."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.changes = 0


_registry_lock = threading.Lock()
_registry: WeakValueDictionary[str, FolderLock] = WeakValueDictionary()


def lock_of(directory: Path) -> FolderLock:
    """The lock of a folder, whatever path leads to it."""
    key = os.path.realpath(directory)
    with _registry_lock:
        found = _registry.get(key)
        if found is None:
            found = _registry[key] = FolderLock()
        return found


@contextmanager
def changing(directory: Path) -> Iterator[None]:
    """Hold the folder's lock, and tell the hubs that it changed."""
    shared = lock_of(directory)
    with shared.lock:
        try:
            yield
        finally:
            shared.changes += 1

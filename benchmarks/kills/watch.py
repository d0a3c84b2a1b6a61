"""What happens in a store's folder (Linux inotify): when to kill, and whether a reader opens a `.tmp`."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

from scanner.store import TABLES

__all__ = ["StoreWatch"]

_OPEN, _MOVED_TO, _CREATE = 0x20, 0x80, 0x100
_HEADER = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)
DECOY = ".decoy.parquet.0.tmp"


@dataclass
class StoreWatch:
    """Watches the table folders of one store. Each has a decoy `.tmp` of garbage that nobody has a reason to open."""

    folder: Path
    date: str
    n_events: int = 0
    """Files that appeared, temporary or final."""
    n_markers: int = 0
    """Commit markers among them: shards and judgements that are done."""
    last: str = ""
    """Table and name of the newest one."""
    decoys_opened: int = 0
    _fd: int = -1
    _tables: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for table in TABLES:
            place = self.folder / table / f"scan_date={self.date}"
            place.mkdir(parents=True, exist_ok=True)
            (place / DECOY).write_bytes(b"PAR1 half a file")
            number = _libc.inotify_add_watch(self._fd, os.fsencode(place), _OPEN | _MOVED_TO | _CREATE)
            if self._fd < 0 or number < 0:
                raise OSError(ctypes.get_errno(), "inotify is not to be had")
            self._tables[number] = table

    def wait(self, until: float, n_events: int | None = None) -> bool:
        """Sleep until a time of `time.monotonic`, or (True) until so many files have appeared."""
        while True:
            if n_events is not None and self.n_events >= n_events:
                return True
            left = until - time.monotonic()
            if left <= 0:
                return False
            if select.select([self._fd], [], [], left)[0]:
                self.drain()

    def drain(self) -> None:
        """Count what has happened so far."""
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            number, mask, _, length = _HEADER.unpack_from(data, at)
            name = data[at + _HEADER.size : at + _HEADER.size + length].rstrip(b"\0").decode()
            at += _HEADER.size + length
            if mask & _OPEN and name == DECOY:
                self.decoys_opened += 1
            elif mask & (_CREATE | _MOVED_TO):
                self.n_events += 1
                self.last = f"{self._tables[number]}/{name}"
                self.n_markers += self.last.startswith("runs/") and name.endswith(".parquet")

    def close(self) -> None:
        """Stop watching."""
        os.close(self._fd)

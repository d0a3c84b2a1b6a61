"""Progress of the flows that run in this process, for whoever wants to draw it (the command's progress bar)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["listening", "report"]

Listener = Callable[[str, int, int], None]
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener(stage, steps done, steps added to the total)` during the block; from any thread."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def report(stage: str, *, done: int = 0, total: int = 0) -> None:
    """Tell the listeners."""
    for listener in _listeners:
        listener(stage, done, total)

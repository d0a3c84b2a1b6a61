"""What other packages add, through entry points. A broken one is a warning, never the end of a scan."""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from typing import Any, TypeVar

__all__ = ["load_plugins"]

T = TypeVar("T")

log = logging.getLogger(__name__)


def load_plugins(group: str, kind: type[T]) -> tuple[T, ...]:
    """All objects of a kind that installed packages name in an entry-point group, in the order of their names.

    An entry point is one such object, or a list or tuple of them.
    """
    found: list[T] = []
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        try:
            loaded: Any = point.load()
        except Exception as error:  # noqa: BLE001 - somebody else's code
            log.warning("plugin %s of %s cannot be loaded: %s: %s", point.name, group, type(error).__name__, error)
            continue
        for item in loaded if isinstance(loaded, list | tuple) else (loaded,):
            if isinstance(item, kind):
                found.append(item)
            else:
                log.warning("plugin %s of %s is a %s, not a %s", point.name, group, type(item).__name__, kind.__name__)
    return tuple(found)

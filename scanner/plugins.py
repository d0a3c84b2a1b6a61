"""What other packages add, through entry points. A broken one is a warning, never the end of a scan."""

from __future__ import annotations

import logging
import os
import sys
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["load_plugins"]

T = TypeVar("T")

log = logging.getLogger(__name__)


def load_plugins(group: str, kind: type[T]) -> tuple[T, ...]:
    """All objects of a kind that installed packages name in an entry-point group, in the order of their names.

    An entry point is one such object, or a list or tuple of them.
    """
    named = _named_groups(tuple(sys.path), tuple(sys.meta_path))
    if named is not None and group not in named:
        return ()
    from importlib.metadata import entry_points

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


@cache
def _named_groups(places: tuple[str, ...], finders: tuple[object, ...]) -> frozenset[str] | None:
    """Entry-point groups that packages on the import path name; None where only importlib.metadata can tell.

    Nearly always nobody names ours. To find that out costs a tenth of importlib.metadata, which is not even imported
    then: it brings the packages for mail and zip files along.
    """
    if any(hasattr(finder, "find_distributions") and finder is not PathFinder for finder in finders):
        return None
    named: set[str] = set()
    for place in places:
        try:
            entries = os.listdir(place or ".")  # noqa: PTH208 - a Path for every installed file takes longer than this
        except NotADirectoryError:  # a zip file
            return None
        except OSError:  # so it is for the import system
            continue
        for entry in entries:
            if entry.lower().endswith((".dist-info", "egg-info")):
                try:
                    text = Path(place, entry, "entry_points.txt").read_text(encoding="utf-8", errors="replace")
                except OSError:
                    continue
                named.update(line.strip().strip("[] ") for line in text.splitlines() if line.lstrip().startswith("["))
    return frozenset(named)

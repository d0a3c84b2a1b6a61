"""Looking up what a config says of a module, by its name or the end of its name, without running a stranger's regex."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from scanner.errors import LimitExceededError

__all__ = ["LITERAL", "MAX_NAMES", "NameIndex"]

V = TypeVar("V")

MAX_NAMES = 20_000
LITERAL = re.compile(r"\^?(?:[\w-]|\\?\.)+")
"""Keys that mean the same as text and as a regular expression over dotted names: what PEFT itself writes."""


class NameIndex(Generic[V]):
    """Entries of a config by module name.

    A key matches the whole name or a dotted end of it (`q_proj` matches `layers.0.q_proj`); with `^` only the whole
    name. Where several match, the first of the config counts, as in PEFT. A look-up costs the number of dots in the
    name, not the number of entries.

    Args:
        entries: key and value.
        literal: keys are plain text, in which `^` and a backslash stand for themselves, as in target_modules.

    Raises:
        LimitExceededError: more than `MAX_NAMES` entries.
    """

    def __init__(self, entries: Mapping[str, V] | Iterable[tuple[str, V]], literal: bool = False) -> None:
        items = list(entries.items() if isinstance(entries, Mapping) else entries)
        if len(items) > MAX_NAMES:
            raise LimitExceededError("module names in the config", MAX_NAMES, len(items))
        self._whole: dict[str, tuple[int, V]] = {}
        self._ends: dict[str, tuple[int, V]] = {}
        for order, (key, value) in enumerate(items):
            table = self._whole if key.startswith("^") and not literal else self._ends
            table.setdefault(key if literal else key.removeprefix("^").replace("\\.", "."), (order, value))

    def find(self, module: str) -> V | None:
        """The value for a module, or None."""
        found = [self._whole[module]] if module in self._whole else []
        end = module
        while end:
            if end in self._ends:
                found.append(self._ends[end])
            end = end.partition(".")[2]
        return min(found, key=lambda item: item[0])[1] if found else None

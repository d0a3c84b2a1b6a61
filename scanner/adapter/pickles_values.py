"""What stands on the stack of the abstract machine. Plain constants, lists and tuples are Python's own."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any

from scanner.adapter.pickles_names import Level

__all__ = ["Blob", "Global", "Mapping", "Opaque", "Storage", "Tensor", "Unordered"]

Blob = bytes | mmap.mmap


@dataclass(frozen=True, slots=True)
class Global:
    """An imported name that nobody imported."""

    module: str
    name: str
    level: Level

    @property
    def pair(self) -> tuple[str, str]:
        """What the lists of names are keyed by."""
        return (self.module, self.name)


@dataclass(frozen=True, slots=True)
class Opaque:
    """The result of something that was not run. `level` is that of the name which was called."""

    level: Level


OPAQUE = {level: Opaque(level) for level in ("allowed", "trainer", "dangerous")}


class Mapping:
    """A dict or an OrderedDict as its pairs: keys may be anything, even what cannot be hashed."""

    __slots__ = ("ordered", "pairs")

    def __init__(self, ordered: bool = False) -> None:
        self.pairs: list[tuple[Any, Any]] = []
        self.ordered = ordered


class Unordered:
    """A set or frozenset; its items are of no use here."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Storage:
    """A persistent id of torch's: bytes that lie elsewhere. `dtype` is "" for an untyped one, which counts bytes."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage, checked for its types only; whether it fits is checked when it is opened."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

"""Layouts of other packages: the entry-point group `lorascope.layouts`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

from scanner.adapter.config import AdapterConfig
from scanner.adapter.lowrank import LowRankUpdate
from scanner.adapter.tensors import TensorFile
from scanner.plugins import load_plugins

__all__ = ["GROUP", "Layout", "LayoutReading", "layout_plugins"]

GROUP = "lorascope.layouts"


@dataclass(frozen=True)
class LayoutReading:
    """What a layout made of a file."""

    updates: tuple[LowRankUpdate, ...]
    explained: tuple[str, ...]
    """Names of the tensors that the updates are made of. All others stay unexplained."""


@runtime_checkable
class Layout(Protocol):
    """A layout that another package knows. It sees only what no built-in layout explains."""

    name: str

    def read(self, file: TensorFile, names: Sequence[str], config: AdapterConfig | None) -> LayoutReading | None:
        """Updates among the tensors `names` of `file`, or None when they are not of this layout.

        Raises:
            LorascopeError: the adapter cannot be read; the same as for built-in layouts.
        """
        ...


@cache
def layout_plugins() -> tuple[Layout, ...]:
    """Layouts of other packages."""
    return load_plugins(GROUP, Layout)  # type: ignore[type-abstract]

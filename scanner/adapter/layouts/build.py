"""What the builders of all methods share: the source they read from and the result they give."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scanner.adapter.layouts import limits
from scanner.adapter.layouts.declared import Declared
from scanner.adapter.lowrank import FullTensor, LowRankUpdate, Role
from scanner.adapter.safetensors import TensorEntry
from scanner.adapter.tensors import TensorFile
from scanner.errors import LimitExceededError

__all__ = ["Built", "Source", "are_floats", "full_tensor"]

_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})


@dataclass(frozen=True)
class Source:
    """Where a builder takes tensors and declarations from."""

    file: TensorFile
    declared: Declared
    max_rank: int
    vera_outputs: Mapping[str, int]
    """Outputs of each module that VeRA scales, by name."""

    def floats(self, entry: TensorEntry) -> npt.NDArray[np.float32] | npt.NDArray[np.float64]:
        """The values of one tensor."""
        return self.file.floats(entry.name)


@dataclass(frozen=True)
class Built:
    """What a builder made of one module's tensors. Those that `used` does not name stay unexplained."""

    updates: tuple[LowRankUpdate, ...]
    used: tuple[TensorEntry, ...]
    companions: tuple[tuple[Role, TensorEntry], ...] = ()
    mismatch: tuple[float, int] | None = None
    """(declared rank, found rank) where they differ."""


def are_floats(*entries: TensorEntry | None) -> bool:
    """Whether all of them are there, are floats, and hold something."""
    return all(e is not None and e.dtype in _FLOATS and e.shape and 0 not in e.shape for e in entries)


def full_tensor(file: TensorFile, entry: TensorEntry) -> FullTensor:
    """A tensor to be read later, within bounds."""

    def read() -> npt.NDArray[np.float32]:
        if (elements := math.prod(entry.shape)) > limits.MAX_HEAD_ELEMENTS:
            raise LimitExceededError(f"numbers in {entry.name[:120]}", limits.MAX_HEAD_ELEMENTS, elements)
        return file.floats(entry.name).astype(np.float32)

    return FullTensor(entry.name, entry.shape, read, entry.size_bytes)

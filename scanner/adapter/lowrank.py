"""The one view of all layouts: an adapter is a sequence of low-rank updates ΔW = s·B·A plus unexplained tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["AdapterView", "FloatArray", "FullTensor", "LowRankUpdate"]

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class LowRankUpdate:
    """One module's update ΔW = scale · B · A.

    Factors are read when asked for, so that an adapter larger than memory can be walked module by module.
    """

    module: str
    """Module name as the base model spells it, where the layout tells (kohya joins it with underscores)."""
    rank: int
    out_features: int
    in_features: int
    scale: float
    """s: α/r, or α/√r for rsLoRA; NaN where the config has no usable number (the view is then unsupported)."""
    read: Callable[[], tuple[FloatArray, FloatArray]] = field(repr=False, compare=False)
    """Returns (A [r, in], B [out, r])."""
    kind: str = "linear"
    """linear, conv or embedding."""


@dataclass(frozen=True)
class FullTensor:
    """A full tensor of a declared head, read when asked for."""

    name: str
    """As the file spells it."""
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[np.float32]] = field(repr=False, compare=False)
    """Returns the values. Raises LimitExceededError where there are too many, MalformedFileError where they are no
    floats."""


@dataclass(frozen=True)
class AdapterView:
    """What the reader made of one weight file."""

    layout: str
    updates: tuple[LowRankUpdate, ...]
    heads: tuple[str, ...] = ()
    """Full tensors that the config declares (modules_to_save, task heads): expected, but not low-rank."""
    head_tensors: tuple[FullTensor, ...] = ()
    """The same tensors with their contents, in the same order."""
    unexplained: tuple[str, ...] = ()
    coverage: float = 0.0
    """Share of tensor bytes that are low-rank updates or declared heads, 0-1."""
    unsupported_reason: str = ""
    """A stable word when the layout or PEFT type cannot be read."""
    notes: tuple[str, ...] = ()

    @property
    def rank(self) -> int | None:
        """Largest rank, from the shapes."""
        return max((update.rank for update in self.updates), default=None)

    @property
    def scaling(self) -> float | None:
        """Largest scale, None where one of them is no number."""
        scales = [update.scale for update in self.updates]
        return max(scales) if scales and all(map(math.isfinite, scales)) else None

    @property
    def target_modules(self) -> tuple[str, ...]:
        """Distinct last parts of the module names, sorted."""
        return tuple(sorted({update.module.rsplit(".", 1)[-1] for update in self.updates}))

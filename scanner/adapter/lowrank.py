"""The one view of all layouts: an adapter is a sequence of low-rank updates ΔW = s·B·A plus what is none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

__all__ = ["AdapterView", "Companion", "FloatArray", "FullTensor", "LowRankUpdate", "Role"]

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class LowRankUpdate:
    """One module's update ΔW = scale · B · A.

    Factors are read when asked for, so that an adapter larger than memory can be walked module by module.
    """

    module: str
    """Module name as the base model spells it, where the layout tells (kohya joins it with underscores). Experts of one
    stacked parameter are numbered: `mlp.experts#3`."""
    rank: int
    """Columns of B and rows of A: a bound of ΔW's rank."""
    out_features: int
    in_features: int
    scale: float
    """s: α/r, or α/√r for rsLoRA; NaN where the config has no usable number (the view is then unsupported)."""
    read: Callable[[], tuple[FloatArray, FloatArray]] = field(repr=False, compare=False)
    """Returns (A [r, in], B [out, r]). Raises LimitExceededError where the factors would be too large to build."""
    kind: str = "linear"
    """linear, conv, embedding or expert."""
    own_rank: int | None = None
    """The rank that people name, where it is not `rank`: a LoHa of rank 8 is a product of rank 64."""
    spectrum: Callable[[], npt.NDArray[np.float64]] | None = field(default=None, repr=False, compare=False)
    """Singular values of B·A, falling, where the layout's structure gives them without the factors (LoKr)."""

    @property
    def operations(self) -> int:
        """Multiplications that the spectrum through QR takes, roughly."""
        return (self.in_features + self.out_features) * self.rank**2 + self.rank**3 if self.spectrum is None else 0


@dataclass(frozen=True)
class FullTensor:
    """A tensor that is no factor, read when asked for."""

    name: str
    """As the file spells it."""
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[np.float32]] = field(repr=False, compare=False)
    """Returns the values. Raises LimitExceededError where there are too many, MalformedFileError where they are no
    floats."""
    size_bytes: int = 0


class Role(StrEnum):
    """What a tensor beside the factors is for."""

    MAGNITUDE = "magnitude"
    """DoRA's column norms: the update is m · (W + ΔW) / ‖W + ΔW‖ then."""
    BIAS = "bias"
    """A bias that is added to, or replaces, the base's."""
    BASE_COPY = "base_copy"
    """The base's own matrix of an adapted module, saved along; loading it replaces the base's."""
    TOKEN_ROWS = "token_rows"
    """Replaced rows of the embedding."""


@dataclass(frozen=True)
class Companion:
    """A tensor that belongs to a layout and is no function of ΔW."""

    role: Role
    module: str
    tensor: FullTensor


@dataclass(frozen=True)
class AdapterView:
    """What the reader made of one weight file."""

    layout: str
    updates: tuple[LowRankUpdate, ...]
    heads: tuple[str, ...] = ()
    """Full tensors that the config declares (modules_to_save, task heads): expected, but not low-rank."""
    head_tensors: tuple[FullTensor, ...] = ()
    """The same tensors with their contents, in the same order."""
    companions: tuple[Companion, ...] = ()
    """Tensors that the layout explains beside the factors."""
    unexplained: tuple[str, ...] = ()
    unexplained_tensors: tuple[FullTensor, ...] = ()
    """The same tensors with their contents, in the same order."""
    coverage: float = 0.0
    """Share of tensor bytes that are explained: low-rank updates, their companions, declared heads; 0-1."""
    total_bytes: int = 0
    """Bytes of all tensors."""
    unsupported_reason: str = ""
    """A stable word when the layout or PEFT type cannot be read."""
    notes: tuple[str, ...] = ()

    @property
    def rank(self) -> int | None:
        """Largest rank, from the shapes."""
        return max((update.own_rank or update.rank for update in self.updates), default=None)

    @property
    def scaling(self) -> float | None:
        """Largest scale, None where one of them is no number."""
        scales = [update.scale for update in self.updates]
        return max(scales) if scales and all(map(math.isfinite, scales)) else None

    @property
    def target_modules(self) -> tuple[str, ...]:
        """Distinct last parts of the module names, sorted."""
        return tuple(sorted({update.module.partition("#")[0].rsplit(".", 1)[-1] for update in self.updates}))

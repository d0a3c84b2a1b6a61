"""What every opened weight file offers, whatever its format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from scanner.adapter.safetensors import TensorEntry

__all__ = ["TensorFile"]


class TensorFile(Protocol):
    """Named tensors, read when asked for. All methods raise only lorascope's errors."""

    @property
    def entries(self) -> dict[str, TensorEntry]:
        """By name, in the order of the file."""
        ...

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says of itself."""
        ...

    def __iter__(self) -> Iterator[TensorEntry]: ...

    def floats(self, name: str) -> npt.NDArray[np.float32] | npt.NDArray[np.float64]:
        """One tensor as float32 (float64 stays), in its own shape. Raises MalformedFileError where it is no float."""
        ...

    def scalar(self, name: str) -> float:
        """The only value of a one-element tensor, integer or float."""
        ...

"""What every opened weight file offers, whatever its format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from scanner.adapter.safetensors import TensorEntry

__all__ = ["TensorFile", "count_nonfinite"]

_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})


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

    def chunks(self, name: str, values: int = 2**22) -> Iterator[npt.NDArray[np.float32] | npt.NDArray[np.float64]]:
        """The values of one tensor, at most `values` at a time where the format allows it. Errors as of `floats`."""
        ...

    def scalar(self, name: str) -> float:
        """The only value of a one-element tensor, integer or float."""
        ...

    def release(self) -> None:
        """Give back memory that reading again would fill again, where there is any."""
        ...


def count_nonfinite(file: TensorFile, names: Iterable[str]) -> dict[str, int]:
    """How many values of each float tensor are NaN or infinite; tensors without any are left out."""
    found = {}
    for name in names:
        if file.entries[name].dtype in _FLOATS:
            count = sum(int(chunk.size - np.count_nonzero(np.isfinite(chunk))) for chunk in file.chunks(name))
            if count:
                found[name] = count
    return found

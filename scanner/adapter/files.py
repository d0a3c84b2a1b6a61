"""Opening weights by what they are, not by what they are called; shards as one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from scanner.adapter.safetensors import TensorEntry, open_safetensors
from scanner.adapter.tensors import TensorFile
from scanner.errors import MalformedFileError, UnsupportedError

__all__ = ["file_format", "has_zip_tail", "open_weights"]

_ZIP_END = b"PK\x05\x06"
_ZIP_TAIL = 22 + 65_535
"""A zip archive ends with a record of 22 bytes and a comment of at most 65,535."""


class ShardedFile:
    """Several files that hold one adapter between them."""

    def __init__(self, files: Sequence[TensorFile]) -> None:
        self.entries: dict[str, TensorEntry] = {}
        self.metadata: dict[str, str] = {}
        self._owners: dict[str, TensorFile] = {}
        for file in files:
            for entry in file:
                if entry.name in self.entries:
                    raise MalformedFileError(f"tensor {entry.name[:120]} occurs in two shards")
                self.entries[entry.name] = entry
                self._owners[entry.name] = file
            self.metadata |= file.metadata

    def __iter__(self) -> Iterator[TensorEntry]:
        return iter(self.entries.values())

    def floats(self, name: str) -> npt.NDArray[np.float32] | npt.NDArray[np.float64]:
        """One tensor; see `TensorFile`."""
        return self._owners[name].floats(name)

    def chunks(self, name: str, values: int = 2**22) -> Iterator[npt.NDArray[np.float32] | npt.NDArray[np.float64]]:
        """One tensor piece by piece; see `TensorFile`."""
        return self._owners[name].chunks(name, values)

    def scalar(self, name: str) -> float:
        """One number; see `TensorFile`."""
        return self._owners[name].scalar(name)

    def release(self) -> None:
        """See `TensorFile`."""
        for file in dict.fromkeys(self._owners.values()):
            file.release()


def open_weights(paths: Sequence[Path], name: str) -> TensorFile:
    """Open a weight file, or its shards in order.

    Args:
        paths: the local copies.
        name: of the (first) file in its repo: its ending says what it claims to be.

    Raises:
        MalformedFileError: a file breaks the rules of its format, or two shards hold the same tensor.
        LimitExceededError: something in it is too large.
        UnsupportedError: no format that is read, or a pickle that would run something.
    """
    files = [_open(path, name) for path in paths]
    return files[0] if len(files) == 1 else ShardedFile(files)


def _open(path: Path, name: str) -> TensorFile:
    kind = file_format(path)
    ending = name.rsplit(".", 1)[-1].lower()
    if ending == "safetensors":
        if kind in ("zip", "pickle", "tar"):
            raise UnsupportedError(f"the file is called safetensors and is a {kind} file", "disguised_file")
        return open_safetensors(path)
    if kind == "safetensors":
        return open_safetensors(path)
    if ending in ("gguf", "npz"):
        raise UnsupportedError(f".{ending} weights are not read by this version", f"layout_{ending}")
    from scanner.adapter.pickles import open_torch_pickle

    return open_torch_pickle(path)


def file_format(path: Path) -> Literal["safetensors", "zip", "pickle", "tar", "other"]:
    """What the bytes are, whatever the name says."""
    with path.open("rb") as stream:
        head = stream.read(10)
    if len(head) == 10 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") + 8 <= path.stat().st_size:
        return "safetensors"
    from scanner.adapter.pickles import sniff  # hardly ever needed: most adapters are safetensors

    return sniff(path)


def has_zip_tail(path: Path) -> bool:
    """Whether a file ends like a zip archive: readers of zip look from the end, others from the beginning."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(0, size - _ZIP_TAIL))
        tail = stream.read(_ZIP_TAIL)
    at = tail.rfind(_ZIP_END)
    while at >= 0:
        record = tail[at : at + 22]
        if len(record) == 22 and int.from_bytes(record[20:22], "little") == len(tail) - at - 22:
            return True
        at = tail.rfind(_ZIP_END, 0, at)
    return False

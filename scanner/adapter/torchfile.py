"""Tensors of torch's files, rebuilt by this reader from the bytes of their storages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scanner.adapter.pickles import read_contents
from scanner.adapter.pickles_names import ITEM_BYTES
from scanner.adapter.pickles_report import clean
from scanner.adapter.pickles_values import Mapping, Tensor
from scanner.adapter.safetensors import MAX_NAME_CHARS, MAX_TENSORS, TensorEntry, decode_floats, decode_scalar
from scanner.errors import LimitExceededError, MalformedFileError, UnsupportedError

__all__ = ["TorchFile", "open_torch_pickle"]

Bytes = npt.NDArray[np.uint8]
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class TorchFile:
    """An opened file. Storages are views of the mapping; a tensor is copied when it is asked for."""

    def __init__(self, tensors: dict[str, Tensor], storages: dict[str, Bytes], others: tuple[str, ...]) -> None:
        self._tensors, self._storages = tensors, storages
        self.metadata: dict[str, str] = {}
        self.others = others
        """Keys of the state dict that hold no tensors."""
        self.entries = {
            name: TensorEntry(name, tensor.dtype, tensor.shape, 0, math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype])
            for name, tensor in tensors.items()
        }

    def __iter__(self) -> Iterator[TensorEntry]:
        return iter(self.entries.values())

    def floats(self, name: str) -> npt.NDArray[np.float32] | npt.NDArray[np.float64]:
        """One tensor as float32 (float64 stays), in its own shape.

        Raises:
            MalformedFileError: an integer or complex tensor.
        """
        tensor = self._tensors[name]
        return decode_floats(self._bytes(tensor), tensor.dtype, name).reshape(tensor.shape)

    def chunks(self, name: str, values: int = 2**22) -> Iterator[npt.NDArray[np.float32] | npt.NDArray[np.float64]]:
        """The whole tensor: strides may lead anywhere in its storage."""
        yield self.floats(name)

    def scalar(self, name: str) -> float:
        """The only value of a one-element tensor."""
        tensor = self._tensors[name]
        return decode_scalar(self._bytes(tensor), tensor.dtype, name)

    def _bytes(self, tensor: Tensor) -> Bytes:
        """A tensor's bytes in the order of its indices."""
        width = ITEM_BYTES[tensor.dtype]
        storage = self._storages[tensor.storage.key]
        count = math.prod(tensor.shape)
        begin = tensor.offset * width
        if _is_contiguous(tensor):
            return storage[begin : begin + count * width]
        items = storage[begin : begin + (_reach(tensor) + 1) * width].view(_UNSIGNED[width])
        strides = [stride * width for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(items, tensor.shape, strides, writeable=False)
        return np.ascontiguousarray(view).reshape(-1).view(np.uint8)


def open_torch_pickle(path: Path) -> TorchFile:
    """Open a state dict, from a zip archive, an older torch file, or a raw pickle of storages beside it.

    Raises:
        UnsupportedError: `dangerous_pickle` when it names anything but what rebuilds tensors, `no_state_dict`, ...
        MalformedFileError, LimitExceededError: it is built in a way that readers may disagree about, or too large.
    """
    with read_contents(path) as contents:
        report = contents.findings.report(contents.kind)
        harmful = report.dangerous or [item for item in report.globals if item.level != "allowed"]
        if harmful:
            raise UnsupportedError(f"loading it imports {harmful[0].module}.{harmful[0].name}", "dangerous_pickle")
        if contents.findings.error is not None:
            raise contents.findings.error
        if report.problems:
            raise MalformedFileError(report.problems[0].message)
        tensors, others = _state_dict(contents.root)
        packed = {}
        for key, member in contents.packed.items():
            assert contents.archive is not None
            packed[key] = np.frombuffer(contents.archive.read(member, member.size, contents.findings), dtype=np.uint8)
        if contents.findings.error is not None:  # a checksum of what was inflated
            raise contents.findings.error
    mapped: Bytes = np.memmap(path, dtype=np.uint8, mode="r")
    storages = {key: mapped[begin : begin + size] for key, (begin, size) in contents.storages.items()} | packed
    for name, tensor in tensors.items():
        _check(name, tensor, storages)
    return TorchFile(tensors, storages, others)


def _state_dict(root: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    if not isinstance(root, Mapping):
        raise UnsupportedError("the file holds no state dict", "no_state_dict")
    pairs = [(key, value) for key, value in root.pairs]
    if not any(isinstance(value, Tensor) for _, value in pairs):
        held = [(key, value) for key, value in pairs if isinstance(value, Mapping)]
        # One dict may stand under many keys.
        if (count := sum(len(value.pairs) for _, value in held)) > MAX_TENSORS:
            raise LimitExceededError("entries of the state dict", MAX_TENSORS, count)
        nested = [
            (f"{key}.{inner}", item) for key, value in held for inner, item in value.pairs if isinstance(inner, str)
        ]
        pairs = nested or pairs
    tensors: dict[str, Tensor] = {}
    others = []
    for key, value in pairs:
        if not isinstance(key, str):
            raise MalformedFileError("a key of the state dict is no text")
        if len(key) > MAX_NAME_CHARS:
            raise LimitExceededError("characters of a tensor's name", MAX_NAME_CHARS, len(key))
        if not isinstance(value, Tensor):
            others.append(clean(key))
        elif key in tensors:
            raise MalformedFileError(f"tensor {key[:120]} occurs twice")
        else:
            tensors[key] = value
    if len(tensors) > MAX_TENSORS:
        raise LimitExceededError("number of tensors", MAX_TENSORS, len(tensors))
    if not tensors:
        raise UnsupportedError("the file holds no tensors", "no_state_dict")
    return tensors, tuple(others)


def _check(name: str, tensor: Tensor, storages: dict[str, Bytes]) -> None:
    """A tensor has to lie inside of its storage and must not be larger than it."""
    width = ITEM_BYTES[tensor.dtype]
    storage = storages.get(tensor.storage.key)
    if storage is None:
        raise MalformedFileError(f"tensor {name[:120]} has no storage in the file")
    announced = tensor.storage.count * ITEM_BYTES.get(tensor.storage.dtype, 1)
    if storage.size != announced:
        raise MalformedFileError(f"a storage has {storage.size:,} bytes, {announced:,} were announced")
    count = math.prod(tensor.shape)
    if count == 0:
        return
    if (tensor.offset + _reach(tensor) + 1) * width > storage.size or count * width > storage.size:
        raise MalformedFileError(f"tensor {name[:120]} reaches beyond its storage, or repeats it")


def _reach(tensor: Tensor) -> int:
    """The last element that a tensor touches, counted from its first."""
    return sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True) if size)


def _is_contiguous(tensor: Tensor) -> bool:
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != expected:
            return 0 in tensor.shape
        expected *= size
    return True

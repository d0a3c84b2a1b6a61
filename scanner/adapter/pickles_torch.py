"""From rebuilt tensors and the bytes of their storages to arrays. Bytes are copied only where strides demand it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Mapping as Map
from typing import Any

import numpy as np
import numpy.typing as npt

from scanner.adapter.pickles_names import ITEM_BYTES
from scanner.adapter.pickles_report import Findings, clean
from scanner.adapter.pickles_streams import Stream
from scanner.adapter.pickles_values import Blob, Mapping, Tensor
from scanner.adapter.pickles_zip import Archive, Budget, unpack
from scanner.adapter.safetensors import MAX_DIMENSIONS, MAX_NAME_CHARS, MAX_TENSORS, SafetensorsFile, TensorEntry
from scanner.errors import LimitExceededError, MalformedFileError, UnsupportedError

__all__ = ["TorchFile", "legacy_storages", "state_tensors", "zip_storages"]

MAX_SHARING = 16
"""Bytes of all tensors for each byte of the storages. Tied weights share one twice; more would be a bomb."""

_Bytes = npt.NDArray[np.uint8]


class TorchFile:
    """A state dict. Its `entries` count bytes as if the tensors lay one after another, each in its own order."""

    def __init__(
        self,
        tensors: Map[str, Tensor],
        others: dict[str, str],
        storages: Map[str, _Bytes],
        *,
        little_endian: bool = True,
    ) -> None:
        self.entries: dict[str, TensorEntry] = {}
        self.metadata: dict[str, str] = {}
        self.others = others
        """What the dict holds besides tensors: path -> a short text."""
        self._tensors = tensors
        self._storages = storages
        self._little_endian = little_endian
        at = 0
        for name, tensor in tensors.items():
            _check_view(name, tensor, storages)
            size = math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
            self.entries[name] = TensorEntry(name, tensor.dtype, tensor.shape, at, at + size)
            at += size
        stored = sum(storage.size for storage in storages.values())
        if at > MAX_SHARING * stored:
            raise MalformedFileError(f"the tensors span {at:,} bytes of storages with {stored:,}")

    def __iter__(self) -> Iterator[TensorEntry]:
        return iter(self.entries.values())

    def floats(self, name: str) -> npt.NDArray[np.float32] | npt.NDArray[np.float64]:
        """One tensor as float32 (float64 stays), in its own shape, bit by bit as from a safetensors file.

        Raises:
            MalformedFileError: a tensor that is no float which can be read.
        """
        return self._plain(name).floats(name)

    def chunks(self, name: str, values: int = 2**22) -> Iterator[npt.NDArray[np.float32] | npt.NDArray[np.float64]]:
        """The values of one tensor in order, at most `values` at a time. Errors as of `floats`."""
        entry = self.entries[name]
        raw, width = self._bytes(name), ITEM_BYTES[entry.dtype]
        for at in range(0, raw.size, values * width):
            piece = raw[at : at + values * width]
            part = TensorEntry(name, entry.dtype, (piece.size // width,), 0, piece.size)
            yield SafetensorsFile(piece, {name: part}, {}).floats(name)

    def scalar(self, name: str) -> float:
        """The only value of a one-element tensor, integer or float."""
        return self._plain(name).scalar(name)

    def release(self) -> None:
        """Nothing: the tensors were read, not mapped."""

    def _plain(self, name: str) -> SafetensorsFile:
        """The tensor as a file of its own: there is one decoder of numbers only."""
        entry = self.entries[name]
        plain = TensorEntry(name, entry.dtype, entry.shape, 0, entry.size_bytes)
        return SafetensorsFile(self._bytes(name), {name: plain}, {})

    def _bytes(self, name: str) -> _Bytes:
        """Little-endian, in the order of the tensor's own indices."""
        tensor = self._tensors[name]
        width, count = ITEM_BYTES[tensor.dtype], math.prod(tensor.shape)
        storage = self._storages[tensor.storage.key]
        begin = tensor.offset * width
        if _is_contiguous(tensor):
            raw = storage[begin : begin + count * width]
        else:
            items = np.lib.stride_tricks.as_strided(
                storage[begin:],
                shape=(*tensor.shape, width),
                strides=(*(stride * width for stride in tensor.strides), 1),
                writeable=False,
            )
            raw = np.ascontiguousarray(items).reshape(-1)
        if self._little_endian or width == 1 or tensor.dtype.startswith("C"):
            return raw
        return np.ascontiguousarray(raw.reshape(-1, width)[:, ::-1]).reshape(-1)


def _is_contiguous(tensor: Tensor) -> bool:
    wanted = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size == 0:
            return True
        if size != 1 and stride != wanted:
            return False
        wanted *= size
    return True


def _check_view(name: str, tensor: Tensor, storages: Map[str, _Bytes]) -> None:
    shown = clean(name, 120)
    width = ITEM_BYTES[tensor.dtype]
    own = ITEM_BYTES[tensor.storage.dtype] if tensor.storage.dtype else 1
    if len(tensor.shape) > MAX_DIMENSIONS:
        raise LimitExceededError("dimensions of a tensor", MAX_DIMENSIONS, len(tensor.shape))
    if tensor.storage.key not in storages:
        raise MalformedFileError(f"tensor {shown} lies in a storage that the file does not have")
    size = storages[tensor.storage.key].size
    if tensor.storage.count * own != size:
        raise MalformedFileError(f"tensor {shown} has a storage of {tensor.storage.count * own:,} bytes, not {size:,}")
    count = math.prod(tensor.shape)
    if count:
        last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
        if (last + 1) * width > size:
            raise MalformedFileError(f"tensor {shown} reaches to byte {(last + 1) * width:,} of a storage of {size:,}")
        if count * width > size:
            raise MalformedFileError(
                f"tensor {shown} repeats its storage of {size:,} bytes {count * width // size:,} times"
            )
    elif math.prod(n for n in tensor.shape if n) * width >= 2**63:
        raise MalformedFileError(f"tensor {shown} has a shape that no machine can address")


def state_tensors(value: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a state dict by name, and the rest as texts.

    A dict without tensors whose values are dicts (`{"state_dict": {...}}`) is taken one level deeper, with the key as
    prefix.

    Raises:
        UnsupportedError: no dict.
        MalformedFileError: a name that occurs twice.
        LimitExceededError: too many tensors, or a name that is too long.
    """
    if not isinstance(value, Mapping):
        raise UnsupportedError(f"the file holds {_describe(value)}, not a dict of tensors", "no_state_dict")
    tensors: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    deeper = not any(isinstance(item, Tensor) for _, item in value.pairs)
    # One dict may stand under many keys.
    count = sum(len(item.pairs) if deeper and isinstance(item, Mapping) else 1 for _, item in value.pairs)
    if count > MAX_TENSORS:
        raise LimitExceededError("entries of a state dict", MAX_TENSORS, count)
    for key, item in value.pairs:
        if deeper and isinstance(item, Mapping) and isinstance(key, str):
            for inner, leaf in item.pairs:
                _add(f"{key}.{inner}" if isinstance(inner, str) else inner, leaf, tensors, others, prefix=key)
        else:
            _add(key, item, tensors, others)
    return tensors, others


def _add(key: Any, item: Any, tensors: dict[str, Tensor], others: dict[str, str], prefix: str = "") -> None:
    if isinstance(key, str) and isinstance(item, Tensor):
        if len(key) > MAX_NAME_CHARS:
            raise LimitExceededError("characters of a tensor's name", MAX_NAME_CHARS, len(key))
        if any("\ud800" <= letter <= "\udfff" for letter in key):
            raise MalformedFileError(f"the name {clean(key, 120)} is no text")  # nothing could encode it
        if key in tensors:
            raise MalformedFileError(f"tensor {clean(key, 120)} occurs twice")
        tensors[key] = item
        if len(tensors) > MAX_TENSORS:
            raise LimitExceededError("number of tensors", MAX_TENSORS, len(tensors))
        return
    shown = clean(key, 120) if isinstance(key, str) else f"{prefix}[{_describe(key)}]"
    if len(others) < MAX_TENSORS:
        others[shown] = _describe(item)


def _describe(value: Any) -> str:
    match value:
        case None | bool() | float():
            return str(value)
        case int():
            return str(value) if abs(value) < 2**64 else "a number"
        case str():
            return clean(value, 80)
        case Mapping():
            return f"a dict of {len(value.pairs):,}"
        case list() | tuple():
            return f"a {type(value).__name__} of {len(value):,}"
        case Tensor():
            return f"a tensor {list(value.shape)[:MAX_DIMENSIONS]}"
    return f"a {type(value).__name__.lower()}"


def zip_storages(data: Blob, archive: Archive, root: str, tensors: Map[str, Tensor]) -> tuple[dict[str, _Bytes], bool]:
    """The bytes of every storage that a tensor lies in, and whether they are little-endian."""
    view = np.frombuffer(data, np.uint8)
    members = {member.name: member for member in archive.members}
    findings, budget = Findings(), Budget()
    storages: dict[str, _Bytes] = {}
    for key in {tensor.storage.key for tensor in tensors.values()}:
        member = members.get(f"{root}data/{key}")
        if member is None:
            continue
        if member.is_stored:
            storages[key] = view[member.begin : member.begin + member.size]
        else:
            storages[key] = np.frombuffer(unpack(data, member, member.size, budget, root, findings), np.uint8)
    order = members.get(f"{root}byteorder")
    word = unpack(data, order, 10, budget, root, findings) if order else b"little"
    if word not in (b"little", b"big"):
        raise MalformedFileError(f"the byte order is {clean(word.decode('latin-1'))}, neither little nor big")
    return storages, word == b"little"


def legacy_storages(data: Blob, stream: Stream, tensors: Map[str, Tensor]) -> dict[str, _Bytes]:
    """The storages that follow the five pickles of torch's format before 1.6, each as a count and its bytes.

    Raises:
        MalformedFileError: a storage nobody refers to, one that is cut, or bytes after the last one.
    """
    keys = stream.values[4]
    widths = {t.storage.key: (ITEM_BYTES[t.storage.dtype] if t.storage.dtype else 1) for t in tensors.values()}
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise MalformedFileError("the list of storages is no list of different names")
    view = np.frombuffer(data, np.uint8)
    storages: dict[str, _Bytes] = {}
    at = stream.end
    for key in keys:
        if key not in widths:
            raise MalformedFileError(f"storage {clean(key)} belongs to no tensor of the dict")
        size = int.from_bytes(data[at : at + 8], "little", signed=True) * widths[key]
        if size < 0 or at + 8 + size > len(data):
            raise MalformedFileError(f"storage {clean(key)} reaches beyond the file")
        storages[key] = view[at + 8 : at + 8 + size]
        at += 8 + size
    if at != len(data):
        raise MalformedFileError(f"{len(data) - at:,} bytes after the last storage")
    return storages

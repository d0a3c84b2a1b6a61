"""A strict safetensors reader: bounded header, exact cover of the file, memory-mapped tensors.

Format: 8 bytes little-endian header length N, N bytes of JSON, then the tensors' bytes. A file that breaks a rule is
refused with the rule it breaks; nothing is guessed, because a second reader might guess differently.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scanner.adapter.jsonfile import parse_json_object
from scanner.errors import LimitExceededError, MalformedFileError

__all__ = [
    "MAX_HEADER_BYTES", "MAX_NAME_CHARS", "MAX_TENSORS", "SafetensorsFile", "TensorEntry", "decode_floats",
    "decode_scalar", "open_safetensors",
]  # fmt: skip

MAX_HEADER_BYTES = 16_000_000
"""A tensor takes about 150 bytes: an adapter of every expert of a large mixture has 70,000 tensors in 11 MB."""
MAX_TENSORS = 100_000
MAX_NAME_CHARS = 512
MAX_DIMENSIONS = 8
MAX_MARKS = 15 * MAX_TENSORS
"""Quotes and opening brackets of a header. A tensor has 13; each costs memory far beyond its byte once it is parsed."""

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_FLOAT8 = {"F8_E4M3": (4, 7, False), "F8_E5M2": (5, 15, True)}
"""Exponent bits, bias, and whether an exponent of ones means infinity and NaN as in IEEE 754 (arXiv:2209.05433)."""
_NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
    "BOOL": "u1",
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """One tensor's place. `begin` and `end` count from the first byte after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.begin


class SafetensorsFile:
    """An opened file. Tensors are views of the mapping; converting one to float copies only that one."""

    def __init__(
        self,
        data: npt.NDArray[np.uint8],
        entries: dict[str, TensorEntry],
        metadata: dict[str, str],
        mapping: mmap.mmap | None = None,
    ) -> None:
        self._data = data
        self._mapping = mapping
        self.entries = entries
        self.metadata = metadata

    def __iter__(self) -> Iterator[TensorEntry]:
        return iter(self.entries.values())

    def floats(self, name: str) -> npt.NDArray[np.float32] | npt.NDArray[np.float64]:
        """One tensor as float32 (float64 stays), in its own shape.

        Raises:
            MalformedFileError: an integer tensor.
        """
        entry = self.entries[name]
        return decode_floats(self._data[entry.begin : entry.end], entry.dtype, name).reshape(entry.shape)

    def chunks(self, name: str, values: int = 2**22) -> Iterator[npt.NDArray[np.float32] | npt.NDArray[np.float64]]:
        """The values of one tensor in order, at most `values` at a time. Errors as of `floats`."""
        entry = self.entries[name]
        width = ITEM_BYTES[entry.dtype]
        for begin in range(entry.begin, entry.end, values * width):
            raw = self._data[begin : min(begin + values * width, entry.end)]
            yield decode_floats(raw, entry.dtype, name)

    def scalar(self, name: str) -> float:
        """The only value of a one-element tensor, integer or float (kohya's alphas come as both)."""
        entry = self.entries[name]
        return decode_scalar(self._data[entry.begin : entry.end], entry.dtype, name)

    def release(self) -> None:
        """Take the pages read so far out of this process's memory. They come back when they are read again."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)


def decode_floats(
    raw: npt.NDArray[np.uint8], dtype: str, name: str
) -> npt.NDArray[np.float32] | npt.NDArray[np.float64]:
    """Bytes of float values in order as float32 (float64 stays), without a copy where they are.

    Raises:
        MalformedFileError: they are no floats.
    """
    if dtype in _FLOAT8:
        return _float8_table(dtype)[raw]
    if dtype == "BF16":
        # bfloat16 is the upper half of a float32.
        bits = raw.view("<u2").astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    if dtype not in ("F64", "F32", "F16"):
        raise MalformedFileError(f"tensor {name[:120]} has dtype {dtype}, not a float that can be read")
    values = raw.view(_NUMPY[dtype])
    return values.astype(np.float32) if dtype == "F16" else values


def decode_scalar(raw: npt.NDArray[np.uint8], dtype: str, name: str) -> float:
    """The value of one integer or float. Errors as of `decode_floats`."""
    if dtype in _NUMPY:
        return float(raw.view(_NUMPY[dtype])[0])
    return float(decode_floats(raw, dtype, name)[0])


@cache
def _float8_table(dtype: str) -> npt.NDArray[np.float32]:
    """The value of each of the 256 codes, float32 [256]."""
    exponent_bits, bias, is_ieee = _FLOAT8[dtype]
    mantissa_bits = 7 - exponent_bits
    codes = np.arange(256)
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent, mantissa = (codes & 0x7F) >> mantissa_bits, codes & (2**mantissa_bits - 1)
    fraction = mantissa / 2**mantissa_bits
    normal = 2.0 ** (exponent.astype(np.float64) - bias) * (1 + fraction)
    values = sign * np.where(exponent == 0, 2.0 ** (1 - bias) * fraction, normal)
    top = exponent == 2**exponent_bits - 1
    if is_ieee:
        values = np.where(top, np.where(mantissa == 0, sign * np.inf, np.nan), values)
    else:  # one code a sign is NaN, and there is no infinity
        values = np.where(top & (mantissa == 2**mantissa_bits - 1), np.nan, values)
    return values.astype(np.float32)


def open_safetensors(path: Path) -> SafetensorsFile:
    """Map a file and check its whole structure before any tensor is touched.

    Raises:
        LimitExceededError: header, tensor count, name length or dimension count over the limit.
        MalformedFileError: any other broken rule, with the rule in its message.
    """
    size = path.stat().st_size
    if size < 10:
        raise MalformedFileError(f"the file has {size} bytes, too few for a safetensors header")
    with path.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise LimitExceededError("safetensors header in bytes", MAX_HEADER_BYTES, header_bytes)
        if header_bytes + 8 > size:
            raise MalformedFileError(f"header announces {header_bytes:,} bytes, the file has {size - 8:,}")
        text = stream.read(header_bytes)
    marks = sum(text.count(mark) for mark in (b'"', b"[", b"{"))
    if marks > MAX_MARKS:
        raise LimitExceededError("quotes and brackets in the safetensors header", MAX_MARKS, marks)
    header = parse_json_object(text, "safetensors header")
    metadata = _metadata(header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise LimitExceededError("number of tensors", MAX_TENSORS, len(header))
    entries = [_entry(name, value) for name, value in header.items()]
    body = size - 8 - header_bytes
    expected = 0
    for entry in sorted(entries, key=lambda e: (e.begin, e.end)):
        if entry.begin != expected:
            raise MalformedFileError(f"tensor {entry.name[:120]} begins at {entry.begin:,}, expected {expected:,}")
        expected = entry.end
    if expected != body:
        raise MalformedFileError(f"tensors end at byte {expected:,}, the file's body has {body:,} bytes")
    by_name = {entry.name: entry for entry in entries}
    with path.open("rb") as stream:
        mapping = mmap.mmap(stream.fileno(), 8 + header_bytes + body, access=mmap.ACCESS_READ)
    # Not np.memmap: each slice of one costs ten times a slice of a plain array.
    data = np.frombuffer(mapping, dtype=np.uint8, offset=8 + header_bytes)
    return SafetensorsFile(data, by_name, metadata, mapping)


def _metadata(value: Any) -> dict[str, str]:
    if value is None:  # MLX writes null
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise MalformedFileError("__metadata__ is not a map from text to text")
    return value


def _entry(name: str, value: Any) -> TensorEntry:
    if len(name) > MAX_NAME_CHARS:
        raise LimitExceededError("characters of a tensor's name", MAX_NAME_CHARS, len(name))
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise MalformedFileError(f"tensor {name[:120]} does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise MalformedFileError(f"tensor {name[:120]} has unknown dtype {str(dtype)[:40]!r}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise MalformedFileError(f"tensor {name[:120]} has a shape or offsets that are not natural numbers")
    if len(shape) > MAX_DIMENSIONS:
        raise LimitExceededError("dimensions of a tensor", MAX_DIMENSIONS, len(shape))
    begin, end = offsets
    if math.prod(size for size in shape if size) * ITEM_BYTES[dtype] >= 2**63:  # a zero hides the others' product
        raise MalformedFileError(f"tensor {name[:120]} has a shape that no machine can address")
    wanted = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != wanted:
        raise MalformedFileError(f"tensor {name[:120]} spans {end - begin:,} bytes, its shape needs {wanted:,}")
    return TensorEntry(name, dtype, tuple(shape), begin, end)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**62 for item in value)

"""Splits a pickle stream into opcodes, protocols 0 to 5, with every length checked before it is used."""

from __future__ import annotations

import codecs
import struct
from typing import Any

from scanner.adapter.pickles_values import Blob
from scanner.errors import LimitExceededError, MalformedFileError, SkipError

__all__ = ["ARGUMENTS", "MAX_STRING_BYTES", "Unread", "read_argument"]

MAX_STRING_BYTES = 2**20
"""One text, byte string or number. The longest that torch writes are tensor names."""
MAX_DIGITS = 4_000
"""Of a decimal number; Python itself refuses more than 4,300."""


class Unread:
    """Stands for an argument that is passed over: too long, or not what its opcode announces. Reading goes on, since
    another reader may be more lenient and what it would import after this must be named."""

    __slots__ = ("error",)

    def __init__(self, error: SkipError) -> None:
        self.error = error


ARGUMENTS: dict[int, str] = {
    # nothing: ( . 0 1 2 N R a b d } e l ] o s t ) u Q and the newer ones
    **dict.fromkeys(b"(.012NRabd}el]ost)uQ\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98", ""),
    **dict.fromkeys(b"Khqr\x80\x82", "u1"), ord("r"): "u4", ord("j"): "u4", ord("M"): "u2",
    0x83: "u2", 0x84: "i4", ord("J"): "i4", 0x95: "u8", ord("G"): "float8",
    ord("F"): "float", ord("I"): "int", ord("L"): "long", 0x8A: "long1", 0x8B: "long4",
    ord("S"): "string", ord("T"): "bytes_i4", ord("U"): "bytes_u1", ord("B"): "bytes_u4", ord("C"): "bytes_u1",
    0x8E: "bytes_u8", 0x96: "bytes_u8",
    ord("V"): "unicode", ord("X"): "text_u4", 0x8C: "text_u1", 0x8D: "text_u8",
    ord("P"): "line", ord("c"): "name", ord("i"): "name", ord("g"): "index", ord("p"): "index",
}  # fmt: skip
"""Opcode -> kind of its argument."""

_FIXED = {
    code: (int(kind[1]), kind[0] == "i") for code, kind in ARGUMENTS.items() if kind in ("u1", "u2", "u4", "u8", "i4")
}
_COUNTED = {
    code: (int(kind[-1]), kind)
    for code, kind in ARGUMENTS.items()
    if kind.startswith(("text_", "bytes_", "long1", "long4"))
}
_BARE = frozenset(code for code, kind in ARGUMENTS.items() if not kind)


def read_argument(data: Blob, code: int, at: int, end: int) -> tuple[Any, int]:
    """The argument of the opcode before `at`, and the place after it. One that cannot be read is `Unread`.

    Raises:
        LimitExceededError: a line of text over the limit.
        MalformedFileError: the stream ends inside of it, or a name or memo index cannot be decoded.
    """
    if code in _BARE:
        return None, at
    if code in _FIXED:
        width, signed = _FIXED[code]
        if at + width > end:
            raise MalformedFileError("the stream ends inside of an argument")
        if width == 1:
            return data[at], at + 1
        return int.from_bytes(data[at : at + width], "little", signed=signed), at + width
    if code in _COUNTED:
        return _counted(data, *_COUNTED[code], at, end)
    kind = ARGUMENTS[code]
    if kind == "float8":
        raw, stop = _take(data, at, 8, end)
        return struct.unpack(">d", raw)[0], stop
    line, stop = _line(data, at, end)
    if kind == "name":
        second, stop = _line(data, stop, end)
        try:
            return (line.decode(), second.decode()), stop
        except UnicodeError as error:
            raise MalformedFileError("an imported name is not UTF-8") from error
    try:
        return _parsed(kind, line), stop
    except ValueError as error:  # covers UnicodeError
        if kind == "index":
            raise MalformedFileError("a memo index is no number") from error
        return Unread(MalformedFileError(f"a line of text is no {kind}")), stop


def _decoded(kind: str, raw: bytes) -> Any:
    if kind.startswith("long"):
        return int.from_bytes(raw, "little", signed=True)
    return raw.decode("utf-8", "surrogatepass") if kind.startswith("text") else raw


def _parsed(kind: str, line: bytes) -> Any:
    """A line of protocol 0, read as Python reads it: `int` takes underscores and blanks there as well."""
    if kind in ("int", "long", "index") and len(line) > MAX_DIGITS:
        raise ValueError("too many digits")
    if kind == "index":
        if (value := int(line)) < 0:
            raise ValueError("negative")
        return value
    if kind == "int":
        return {b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line, 0 if b"x" in line else 10)
    if kind == "long":
        return int(line[:-1] if line.endswith(b"L") else line)
    if kind == "float":
        return float(line)
    if kind == "unicode":
        return codecs.raw_unicode_escape_decode(line)[0]
    if kind == "string":
        text = line.rstrip(b"\r")
        if len(text) < 2 or text[0] != text[-1] or text[:1] not in (b'"', b"'"):
            raise ValueError("not quoted")
        return codecs.escape_decode(text[1:-1])[0].decode("latin-1")
    return line.decode("latin-1")


def _counted(data: Blob, width: int, kind: str, at: int, end: int) -> tuple[Any, int]:
    head, at = _take(data, at, width, end)
    count = int.from_bytes(head, "little", signed=kind in ("bytes_i4", "long4"))
    if count < 0 or at + count > end:
        raise MalformedFileError("the stream ends inside of an argument")
    if count > MAX_STRING_BYTES:
        return Unread(LimitExceededError("bytes of a text in a pickle", MAX_STRING_BYTES, count)), at + count
    try:
        return _decoded(kind, data[at : at + count]), at + count
    except UnicodeError:
        return Unread(MalformedFileError("a text is not UTF-8")), at + count


def _take(data: Blob, at: int, count: int, end: int) -> tuple[bytes, int]:
    if at + count > end:
        raise MalformedFileError("the stream ends inside of an argument")
    return data[at : at + count], at + count


def _line(data: Blob, at: int, end: int) -> tuple[bytes, int]:
    stop = data.find(b"\n", at, min(end, at + MAX_STRING_BYTES + 1))
    if stop < 0:
        if end - at > MAX_STRING_BYTES:
            raise LimitExceededError("bytes of a line in a pickle", MAX_STRING_BYTES, end - at)
        return data[at : max(at, end - 1)], end  # as Python's own reader in Python has it; in C it is an error
    return data[at:stop], stop + 1

"""Small files that make a careless reader work or remember without end."""

from __future__ import annotations

import struct

from pickle_samples import called, imported, proto, zipped

ORDERED = imported("collections", "OrderedDict")
MANY_PAIRS = b"](" + b"K\x01K\x02\x86" * 200_000 + b"e\x94"
LONG_TUPLE = b"(" + b"K\x01" * 300_000 + b"t\x94"

BOMBS = {
    "empty dicts": b"\x80\x04" + b"}" * 2_000_000,
    "lists of dicts": b"\x80\x04" + (b"(" + b"}" * 200_000 + b"l") * 7 + b".",
    "memo": b"\x80\x04N" + b"\x94" * 2_000_000 + b".",
    "memo of floats": b"\x80\x04" + (b"G" + b"\1" * 8 + b"\x94" + b"0") * 600_000 + b".",
    "texts": b"\x80\x04" + (b"\x8c\x03" + "€".encode()) * 249_999 + b"\xff",
    "wide texts": b"\x80\x04" + (b"X" + struct.pack("<I", 2**19) + b"a" * (2**19 - 4) + "🙂".encode()) * 60 + b"\xff",
    "calls": b"\x80\x04" + (ORDERED + b")R") * 600_000 + b".",
    "one list for many": proto(MANY_PAIRS + called(ORDERED, b"h\x00") * 50_000),
    "one tuple for many": proto(LONG_TUPLE + called(imported("torch", "Size"), b"h\x00") * 50_000),
    "arguments for many": proto(LONG_TUPLE + (ORDERED + b"h\x00R") * 50_000),
    "ids for many": proto(LONG_TUPLE + b"h\x00Q" * 50_000),
    "many members": zipped([(f"a/{i}.pkl", b"\x80\x04" + b"N0" * 100 + b".") for i in range(10_000)]),
    "lines without end": zipped([(f"a/{i}", b"c" + bytes(10_000)) for i in range(1_000)]),
    "names": proto(b"".join(imported(f"module{i}", "f") for i in range(200_000))),
}

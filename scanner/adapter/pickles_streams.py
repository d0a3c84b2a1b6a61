"""Reads the pickles that follow one another in a stretch of bytes, and decides whether it was a pickle at all."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from scanner.adapter.pickles_machine import MAX_OPCODES, Machine
from scanner.adapter.pickles_report import Findings
from scanner.adapter.pickles_values import Blob, Mapping
from scanner.adapter.pickles_zip import Budget
from scanner.errors import LimitExceededError, SkipError

__all__ = ["LEGACY_MAGIC", "LEGACY_PROTOCOL", "Stream", "probe_stream", "read_stream"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLES = 64
"""In one stream. Torch's old format has five."""
_SURE_OPCODES = 8
"""After a protocol header. Tensor bytes get that far once in a billion members."""
_WORD = re.compile(r"[A-Za-z_][\w.]+")


@dataclass
class Stream:
    """What was read: the value of each pickle, and where the last one that reached STOP ends."""

    values: list[Any] = field(default_factory=list)
    end: int = 0
    opcodes: int = 0
    error: SkipError | None = None

    @property
    def is_legacy(self) -> bool:
        """Whether it begins as torch's format before 1.6 does."""
        return len(self.values) >= 2 and self.values[:2] == [LEGACY_MAGIC, LEGACY_PROTOCOL]

    @property
    def little_endian(self) -> bool:
        """Of a legacy stream: the byte order of the machine that wrote it."""
        info = self.values[2] if len(self.values) > 2 else None
        pairs = info.pairs if isinstance(info, Mapping) else []
        return not any(key == "little_endian" and value is False for key, value in pairs)


def read_stream(data: Blob, begin: int, end: int, where: str, findings: Findings, budget: Budget) -> Stream:
    """Every pickle from `begin` on. All are read: loaders that call load() twice exist, torch's old one among them."""
    stream = Stream(end=begin)
    before = budget.opcodes
    while stream.end < end and len(stream.values) < MAX_PICKLES:
        first = not stream.values
        scratch = findings if first else Findings()
        machine = Machine(data, stream.end, end, where, scratch, budget.opcodes)
        try:
            value = machine.run()
        except SkipError as error:
            budget.opcodes = machine.opcodes
            if first:
                stream.error = error
            elif scratch.imports:  # what follows the last STOP may be anything, storages for example
                findings.merge(scratch)
            break
        if not first:
            findings.merge(scratch)
        budget.opcodes = machine.opcodes
        stream.values.append(value)
        stream.end = machine.at
        if stream.is_legacy and len(stream.values) == 5:
            break
    stream.opcodes = budget.opcodes - before
    return stream


def probe_stream(
    data: Blob, begin: int, end: int, where: str, budget: Budget, *, alone: bool = False
) -> tuple[Stream, Findings] | None:
    """The same for bytes of which nobody said that they are a pickle. None when they are none.

    They are one when they import a name in plain letters, or when a protocol header is followed by opcodes. Bytes of
    tensors stop at the first byte that is no opcode; by chance they hold short imports like EXT1 every few thousand
    storages. A file of its own (`alone`) is also one when it reaches STOP after any import or at its very end.
    """
    findings = Findings()
    stream = read_stream(data, begin, end, where, findings, budget)
    found = findings.report("pickle").globals
    named = any(_WORD.fullmatch(item.module) and _WORD.fullmatch(item.name) for item in found)
    head = data[begin : begin + 2]
    headed = len(head) == 2 and head[0] == 0x80 and head[1] <= 5
    sure = headed and (bool(stream.values) or stream.opcodes >= _SURE_OPCODES)
    ended = alone and bool(stream.values) and (bool(found) or stream.end == end)
    spent = budget.opcodes > MAX_OPCODES  # then what follows is not read either, which must be told
    long = isinstance(stream.error, LimitExceededError) and (stream.opcodes >= _SURE_OPCODES or spent)
    if named or sure or ended or long:
        return stream, findings
    return None

"""Tar archives, in which torch saved until 2017 and in which some tools hand weights over: members, and nothing else.

The plain header only. Every extension (long names, pax, sparse files) can make two readers see different members, so
each is a problem of its own.
"""

from __future__ import annotations

import zlib

from scanner.adapter.pickles_report import Findings, clean
from scanner.adapter.pickles_values import Blob
from scanner.adapter.pickles_zip import Member
from scanner.errors import LimitExceededError

__all__ = ["is_tar", "read_tar"]

_BLOCK = 512
MAX_MEMBERS = 10_000


def is_tar(data: Blob, at: int) -> bool:
    """Whether a header with the right checksum begins at `at`."""
    header = data[at : at + _BLOCK]
    if len(header) < _BLOCK or not header[0]:
        return False
    try:
        wanted = int(header[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return wanted == sum(header) - sum(header[148:156]) + 8 * ord(" ")


def read_tar(data: Blob, where: str, findings: Findings) -> tuple[Member, ...]:
    """The members, in order.

    Raises:
        LimitExceededError: too many of them.
    """
    findings.add_problem("legacy_tar", f"{where}: a tar archive, which no adapter is saved as")
    members: list[Member] = []
    at = 0
    while is_tar(data, at):
        header = data[at : at + _BLOCK]
        name = header[:100].split(b"\0")[0].decode("utf-8", "replace")
        digits = header[124:136].strip(b" \0")
        size = int(digits, 8) if digits.isdigit() and not digits.strip(b"01234567") else 0
        if header[156:157] not in b"0\0" or not digits.isdigit():
            findings.add_problem("tar_extension", f"{where}!{clean(name)}: an entry that is no plain file")
        size = min(size, len(data) - at - _BLOCK)
        if len(members) >= MAX_MEMBERS:
            raise LimitExceededError("members of a tar archive", MAX_MEMBERS, len(members) + 1)
        begin = at + _BLOCK
        members.append(Member(name, 0, _crc(data, begin, size), size, size, begin))
        at = begin + -(-size // _BLOCK) * _BLOCK
    if any(data[i : i + 2**20].strip(b"\0") for i in range(at, len(data), 2**20)):
        findings.add_problem("trailing_data", f"{where}: bytes after the last member of the tar archive")
    return tuple(members)


def _crc(data: Blob, begin: int, size: int) -> int:
    with memoryview(data) as view:  # tar has no checksum of contents
        return zlib.crc32(view[begin : begin + size])

"""A strict zip directory: two readers that see two different archives in one file is what attackers use.

Torch's reader, Python's zipfile and command line tools disagree about damaged archives. Here every member's local
header must say the same as the directory, and the members must cover the file without gap or overlap.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from scanner.adapter.pickles_report import Findings, clean
from scanner.adapter.pickles_values import Blob
from scanner.errors import LimitExceededError, MalformedFileError

__all__ = ["Archive", "Budget", "Member", "find_end", "read_archive", "unpack"]

MAX_DIRECTORY_BYTES = 2**24
MAX_MEMBERS = 110_000
MAX_INFLATED_BYTES = 2**27
"""Of all compressed members of a file together, nested archives included. Torch compresses nothing."""
MAX_RATIO = 200
RATIO_FROM_BYTES = 2**20
"""Smaller members may be compressed by any factor."""
_STORED, _DEFLATED = 0, 8
_LOCAL, _DIRECTORY, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64, _LOCATOR, _DESCRIPTOR = b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08"
_FULL32 = 0xFFFFFFFF
_CHUNK = 2**20


@dataclass(frozen=True)
class Member:
    """One file in an archive. `begin` is the place of its packed bytes."""

    name: str
    method: int
    crc: int
    packed: int
    size: int
    begin: int

    @property
    def is_stored(self) -> bool:
        """Whether its bytes lie in the archive as they are."""
        return self.method == _STORED


@dataclass(frozen=True)
class Archive:
    """The members, in the order of the directory, and stretches of the file that belong to none."""

    members: tuple[Member, ...]
    gaps: tuple[tuple[int, int], ...]


class Budget:
    """What a file has cost so far, the archives in it included."""

    def __init__(self, limit: int = MAX_INFLATED_BYTES) -> None:
        self.limit = limit
        self.used = 0
        self.opcodes = 0

    def take(self, count: int) -> None:
        """Count inflated or copied bytes. Raises LimitExceededError when they are too many."""
        self.used += count
        if self.used > self.limit:
            raise LimitExceededError("inflated bytes of an archive", self.limit, self.used)


def find_end(data: Blob) -> int:
    """Where the last end-of-directory record begins, -1 without one."""
    at = data.rfind(_END, max(0, len(data) - 22 - 65_535))
    return at if at >= 0 and at + 22 <= len(data) else -1


def read_archive(data: Blob, where: str, findings: Findings) -> Archive:
    """The directory of an archive, checked against every local header.

    Raises:
        LimitExceededError: a directory that is too large.
        MalformedFileError: no directory, or one that cannot be read to its end.
    """
    end = find_end(data)
    if end < 0:
        raise MalformedFileError("a zip archive without a directory")
    disk, first_disk, here, count, size, offset, comment = struct.unpack_from("<HHHHIIH", data, end + 4)
    if end + 22 + comment != len(data):
        findings.add_problem("trailing_data", f"{where}: bytes that belong to no archive follow the zip directory")
    elif comment:
        findings.add_problem("zip_comment", f"{where}: the archive has a comment of {comment:,} bytes")
    stop = end
    if end >= 20 and data[end - 20 : end - 16] == _LOCATOR:
        count, size, offset, stop = _end64(data, end, (count, size, offset))
    elif disk or first_disk or here != count or _FULL32 in (size, offset):
        raise MalformedFileError("the zip directory spans several files")
    if size > MAX_DIRECTORY_BYTES:
        raise LimitExceededError("zip directory in bytes", MAX_DIRECTORY_BYTES, size)
    if count > MAX_MEMBERS:
        raise LimitExceededError("members of a zip archive", MAX_MEMBERS, count)
    begin = stop - size
    if begin < offset:
        raise MalformedFileError("the zip directory does not end where it says")
    if begin > offset:
        findings.add_problem("prepended_data", f"{where}: {begin - offset:,} bytes precede the zip archive")
    return _members(data, begin, stop, count, begin - offset, where, findings)


def _end64(data: Blob, end: int, short: tuple[int, int, int]) -> tuple[int, int, int, int]:
    at = end - 76
    if at < 0 or data[at : at + 4] != _END64 or int.from_bytes(data[at + 4 : at + 12], "little") != 44:
        raise MalformedFileError("the zip64 end record is not where it belongs")
    disk, first_disk, here, count, size, offset = struct.unpack_from("<IIQQQQ", data, at + 16)
    if disk or first_disk or here != count:
        raise MalformedFileError("the zip directory spans several files")
    for old, new, full in zip(short, (count, size, offset), (0xFFFF, _FULL32, _FULL32), strict=True):
        if old not in (new, full):
            raise MalformedFileError("the two end records of the zip archive disagree")
    return count, size, offset, at


def _members(data: Blob, begin: int, stop: int, count: int, shift: int, where: str, findings: Findings) -> Archive:
    members: list[Member] = []
    spans: list[tuple[int, int, str]] = []
    seen: set[str] = set()
    at = begin
    for _ in range(count):
        if at + 46 > stop or data[at : at + 4] != _DIRECTORY:
            raise MalformedFileError("the zip directory ends early")
        fields = struct.unpack_from("<6H3I5H2I", data, at + 4)
        flags, method, crc, packed, size = fields[2], fields[3], fields[6], fields[7], fields[8]
        name_bytes, extra_bytes, comment_bytes, local = fields[9], fields[10], fields[11], fields[15]
        if at + 46 + name_bytes + extra_bytes + comment_bytes > stop:
            raise MalformedFileError("the zip directory ends early")
        raw = data[at + 46 : at + 46 + name_bytes]
        extra = data[at + 46 + name_bytes : at + 46 + name_bytes + extra_bytes]
        size, packed, local = _wide(extra, (size, packed, local))
        at += 46 + name_bytes + extra_bytes + comment_bytes
        name = raw.decode("utf-8", "replace")
        place = f"{where}!{clean(name)}"
        _check_name(name, place, findings)
        # Torch finds its members without regard to case.
        if name.casefold() in seen:
            findings.add_problem("duplicate_member", f"{place}: two members of this name")
        seen.add(name.casefold())
        if flags & 0x2041:
            findings.add_problem("encrypted_member", f"{place}: the member is encrypted")
            continue
        if method not in (_STORED, _DEFLATED):
            findings.add_problem("zip_method", f"{place}: compression method {method} is not read")
            continue
        if method == _STORED and packed != size:
            findings.add_problem("header_mismatch", f"{place}: a stored member of two sizes")
            continue
        span = _check_local(data, local + shift, begin, (raw, flags, method, crc, packed, size), place, findings)
        if span is None:
            continue
        member = Member(name, method, crc, packed, size, span[0])
        members.append(member)
        spans.append((local + shift, span[1], name))
    if at != stop:
        findings.add_problem("hidden_bytes", f"{where}: {stop - at:,} bytes after the last entry of the zip directory")
    return Archive(tuple(members), _gaps(spans, begin, shift, where, findings))


def _wide(extra: bytes, values: tuple[int, int, int]) -> tuple[int, int, int]:
    """Size, packed size and offset, where a field of ones sends the reader to the zip64 extra."""
    if _FULL32 not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = [int.from_bytes(extra[i : i + 8], "little") for i in range(at + 4, at + 4 + length - 7, 8)]
            result = [wide.pop(0) if value == _FULL32 and wide else value for value in values]
            return result[0], result[1], result[2]
        at += 4 + length
    return values


def _check_name(name: str, place: str, findings: Findings) -> None:
    parts = name.split("/")
    unsafe = not name or "\\" in name or ":" in name or not name.isprintable() or "�" in name
    if unsafe or ".." in parts or "." in parts or "" in parts[:-1] or len(name) > 1_000:
        findings.add_problem("unsafe_name", f"{place}: no plain relative path")


def _check_local(
    data: Blob, at: int, limit: int, wanted: tuple[bytes, int, int, int, int, int], place: str, findings: Findings
) -> tuple[int, int] | None:
    """Where the packed bytes begin and where the member ends, its descriptor included. None when it cannot be read."""
    raw, flags, method, crc, packed, size = wanted
    if at < 0 or at + 30 > limit or data[at : at + 4] != _LOCAL:
        findings.add_problem("header_mismatch", f"{place}: no local header where the directory says")
        return None
    _, l_flags, l_method, _, _, l_crc, l_packed, l_size, l_name, l_extra = struct.unpack_from("<5H3I2H", data, at + 4)
    begin = at + 30 + l_name + l_extra
    stop = begin + packed
    if stop > limit:
        findings.add_problem("header_mismatch", f"{place}: the member reaches beyond the archive")
        return None
    extra = data[at + 30 + l_name : begin]
    l_size, l_packed, _ = _wide(extra, (l_size, l_packed, 0))
    if data[at + 30 : at + 30 + l_name] != raw:
        findings.add_problem("header_mismatch", f"{place}: the local header has another name")
    elif l_method != method or (l_flags ^ flags) & 0x0849:
        findings.add_problem("header_mismatch", f"{place}: the local header has another method or other flags")
    elif (l_crc, l_packed, l_size) != (crc, packed, size) and not (
        flags & 8 and (l_crc, l_packed, l_size) == (0, 0, 0)
    ):
        findings.add_problem("header_mismatch", f"{place}: the local header has another size or checksum")
    if flags & 8:
        stop += _descriptor_bytes(data, stop, (crc, packed, size), place, findings)
    return begin, stop


def _descriptor_bytes(data: Blob, at: int, wanted: tuple[int, int, int], place: str, findings: Findings) -> int:
    for form in ("<4sIII", "<4sIQQ"):
        length = struct.calcsize(form)
        if at + length <= len(data):
            sign, *values = struct.unpack_from(form, data, at)
            if sign == _DESCRIPTOR and tuple(values) == wanted:
                return length
    for form in ("<III", "<IQQ"):  # its signature may be left out
        length = struct.calcsize(form)
        if at + length <= len(data) and struct.unpack_from(form, data, at) == wanted:
            return length
    findings.add_problem("header_mismatch", f"{place}: the descriptor after the member is missing or says otherwise")
    return 0


def _gaps(
    spans: list[tuple[int, int, str]], end: int, shift: int, where: str, findings: Findings
) -> tuple[tuple[int, int], ...]:
    gaps = [(0, shift)] if shift else []
    at = shift
    for begin, stop, name in sorted(spans):
        if begin < at:
            findings.add_problem("overlap", f"{where}!{clean(name)}: shares bytes with another member")
        elif begin > at:
            gaps.append((at, begin))
        at = max(at, stop)
    if at < end:
        gaps.append((at, end))
    hidden = sum(stop - begin for begin, stop in gaps) - shift
    if hidden:
        findings.add_problem("hidden_bytes", f"{where}: {hidden:,} bytes of the archive belong to no member")
    return tuple(gaps)


def unpack(data: Blob, member: Member, keep: int, budget: Budget, where: str, findings: Findings) -> bytes:
    """The first `keep` bytes of a member, after its whole content went through the checksum.

    Raises:
        LimitExceededError: the budget is used up.
    """
    place = f"{where}!{clean(member.name)}"
    kept = bytearray()
    crc = 0
    size = 0
    if member.is_stored:
        with memoryview(data) as view:
            for at in range(member.begin, member.begin + member.size, 64 * _CHUNK):
                crc = zlib.crc32(view[at : min(at + 64 * _CHUNK, member.begin + member.size)], crc)
        size = member.size
        kept += data[member.begin : member.begin + min(keep, size)]
    else:
        if member.size > max(RATIO_FROM_BYTES, MAX_RATIO * member.packed):
            ratio = member.size // max(1, member.packed)
            findings.add_problem(
                "compression_ratio", f"{place}: {ratio:,} times its packed size, the limit is {MAX_RATIO}"
            )
        inflate = zlib.decompressobj(-15)
        at, stop = member.begin, member.begin + member.packed
        try:
            while not inflate.eof and size <= member.size and (at < stop or inflate.unconsumed_tail):
                packed = inflate.unconsumed_tail or data[at : min(at + _CHUNK, stop)]
                at += 0 if inflate.unconsumed_tail else len(packed)
                piece = inflate.decompress(packed, _CHUNK)
                budget.take(len(piece))
                crc, size = zlib.crc32(piece, crc), size + len(piece)
                kept += piece[: max(0, keep - len(kept))]
        except zlib.error:
            findings.add_problem("bad_deflate", f"{place}: the packed bytes cannot be inflated")
            return bytes(kept)
        if not inflate.eof or inflate.unused_data or at < stop:
            findings.add_problem("bad_deflate", f"{place}: the packed bytes do not end where the directory says")
    if size != member.size:
        findings.add_problem("header_mismatch", f"{place}: inflates to another size than the directory says")
    elif crc != member.crc:
        findings.add_problem("bad_crc", f"{place}: the checksum of its bytes is not the one in the directory")
    return bytes(kept)

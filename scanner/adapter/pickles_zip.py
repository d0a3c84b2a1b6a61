"""Zip archives, directory and local headers compared, every checksum verified, inflating bounded."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

from scanner.adapter.pickles_report import Findings, clean
from scanner.adapter.pickles_values import Blob
from scanner.errors import LimitExceededError, MalformedFileError

__all__ = ["Archive", "Member", "open_archive"]

MAX_MEMBERS = 200_000
MAX_INFLATED_BYTES = 512 * 1024**2
"""All compressed members together. torch compresses nothing."""
MAX_RATIO = 1_000
_LOCAL_BYTES = 30


@dataclass(frozen=True)
class Member:
    """One file of an archive."""

    name: str
    begin: int
    """Of its bytes, compressed or not."""
    size: int
    """As it is read."""
    packed_size: int
    is_stored: bool
    crc: int


class Archive:
    """An opened archive: its members in the order of the directory."""

    def __init__(self, data: Blob, members: list[Member]) -> None:
        self._data, self.members = data, members
        self._inflated = 0

    def read(self, member: Member, limit_bytes: int, found: Findings) -> bytes:
        """A member's bytes, its checksum compared.

        Raises:
            LimitExceededError: larger than `limit_bytes`, or too much is inflated.
            MalformedFileError: it cannot be inflated to its size.
        """
        if member.size > limit_bytes:
            raise LimitExceededError(f"size of {member.name[:80]} in bytes", limit_bytes, member.size)
        raw = self._data[member.begin : member.begin + member.packed_size]
        if not member.is_stored:
            raw = self._inflate(member, raw)
        if zlib.crc32(raw) != member.crc:
            found.add_problem("bad_crc", f"{member.name[:80]} has another checksum than the archive says")
        return raw

    def check(self, member: Member, found: Findings) -> None:
        """Compare the checksum of a member that lies in the file as it is."""
        if not member.is_stored:
            return  # `read` does, when it is inflated
        crc, step = 0, 1 << 22
        for at in range(member.begin, member.begin + member.size, step):
            crc = zlib.crc32(self._data[at : min(at + step, member.begin + member.size)], crc)
        if crc != member.crc:
            found.add_problem("bad_crc", f"{member.name[:80]} has another checksum than the archive says")

    def byte_order(self, prefix: str | None) -> str:
        """What torch's own record says; little where there is none."""
        for member in self.members:
            if member.name == f"{prefix}byteorder" and member.size < 16:
                return self._data[member.begin : member.begin + member.size].decode("latin-1").strip()
        return "little"

    def _inflate(self, member: Member, raw: bytes) -> bytes:
        self._inflated += member.size
        if self._inflated > MAX_INFLATED_BYTES:
            raise LimitExceededError("bytes inflated from an archive", MAX_INFLATED_BYTES, self._inflated)
        if member.size > MAX_RATIO * max(member.packed_size, 1_000):
            raise LimitExceededError(f"compression of {member.name[:80]}", MAX_RATIO, member.size // member.packed_size)
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            body = inflater.decompress(raw, member.size + 1)
        except zlib.error as error:
            raise MalformedFileError(f"{member.name[:80]} cannot be inflated") from error
        if len(body) != member.size or not inflater.eof:
            raise MalformedFileError(f"{member.name[:80]} inflates to another size than the archive says")
        return body


def open_archive(data: Blob, found: Findings) -> Archive:
    """Read the directory and compare it with the local headers. Oddities go to `found`.

    Raises:
        MalformedFileError: no archive, or one that cannot be read.
        LimitExceededError: too many members.
    """
    try:
        with zipfile.ZipFile(_Window(data)) as archive:
            entries, comment = archive.infolist(), archive.comment
            start = getattr(archive, "start_dir", 0)
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, OSError, IndexError, struct.error) as error:
        raise MalformedFileError(f"the zip archive cannot be read: {clean(str(error), 80)}") from error
    if len(entries) > MAX_MEMBERS:
        raise LimitExceededError("members of an archive", MAX_MEMBERS, len(entries))
    if comment:
        found.add_problem("zip_comment", f"the archive ends with a comment of {len(comment):,} bytes")
    names: set[str] = set()
    members = []
    first = min((entry.header_offset for entry in entries), default=0)
    if entries and first != 0:
        found.add_problem("prepended_data", f"{first:,} bytes lie before the archive")
    for entry in entries:
        shown = clean(entry.filename, 80)
        if entry.filename in names:
            found.add_problem("duplicate_member", f"{shown} occurs twice in the archive")
        names.add(entry.filename)
        if entry.filename.startswith(("/", "\\")) or ".." in entry.filename.replace("\\", "/").split("/"):
            found.add_problem("path_traversal", f"{shown} leads out of the archive")
        if entry.flag_bits & 0x1:
            found.add_problem("encrypted_member", f"{shown} is encrypted")
            continue
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            found.add_problem("odd_compression", f"{shown} is compressed by method {entry.compress_type}")
            continue
        if not entry.filename:
            found.add_problem("nameless_member", "a member of the archive has no name")
        elif entry.is_dir():
            continue
        members.append(_member(data, entry, start, shown, found))
    end = 0
    for member in sorted(members, key=lambda member: member.begin):
        if member.begin < end:  # many members over the same bytes: a small file that takes forever to read
            raise MalformedFileError(f"{clean(member.name, 80)} overlaps another member of the archive")
        end = member.begin + member.packed_size
    return Archive(data, members)


def _member(data: Blob, entry: zipfile.ZipInfo, directory: int, shown: str, found: Findings) -> Member:
    at = entry.header_offset
    head = data[at : at + _LOCAL_BYTES]
    if len(head) < _LOCAL_BYTES or head[:4] != b"PK\x03\x04":
        raise MalformedFileError(f"{shown} has no local header")
    flags, method = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    name_bytes, extra_bytes = int.from_bytes(head[26:28], "little"), int.from_bytes(head[28:30], "little")
    name = data[at + _LOCAL_BYTES : at + _LOCAL_BYTES + name_bytes]
    if name.decode("utf-8", "replace") != entry.orig_filename and name.decode("cp437") != entry.orig_filename:
        found.add_problem("header_mismatch", f"{shown} is called {clean(repr(name), 80)} in its local header")
    if method != entry.compress_type or (flags ^ entry.flag_bits) & 0x1:
        found.add_problem("header_mismatch", f"{shown} is packed in another way in its local header")
    crc, packed, size = (int.from_bytes(head[a : a + 4], "little") for a in (14, 18, 22))
    if (
        not flags & 0x8
        and packed != 0xFFFFFFFF
        and (crc, packed, size) != (entry.CRC, entry.compress_size, entry.file_size)
    ):
        found.add_problem("header_mismatch", f"{shown} has another size or checksum in its local header")
    is_stored = entry.compress_type == zipfile.ZIP_STORED
    begin = at + _LOCAL_BYTES + name_bytes + extra_bytes
    if is_stored and entry.compress_size != entry.file_size:
        raise MalformedFileError(f"{shown} is stored with two different sizes")
    if begin + entry.compress_size > directory:
        raise MalformedFileError(f"{shown} reaches beyond the archive's directory")
    return Member(entry.filename, begin, entry.file_size, entry.compress_size, is_stored, entry.CRC)


class _Window(io.RawIOBase):
    """Mapped bytes as a file, without a copy."""

    def __init__(self, data: Blob) -> None:
        super().__init__()
        self._view, self._at = data, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        if base + offset < 0:
            raise OSError("negative seek")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        chunk = self._view[self._at : self._at + len(buffer)]
        buffer[: len(chunk)] = chunk
        self._at += len(chunk)
        return len(chunk)

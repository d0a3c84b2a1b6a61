"""Pickle files, read and never unpickled: raw streams, torch's zip archives and its older formats.

`inspect_pickle` names everything that a file would import, and every way in which it is built so that two readers see
two different files. `open_torch_pickle` reads the tensors of a file in which nothing of that kind was found.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scanner.adapter.pickles_machine import Machine
from scanner.adapter.pickles_names import ITEM_BYTES
from scanner.adapter.pickles_report import Findings, Kind, PickleGlobal, PickleProblem, PickleReport
from scanner.adapter.pickles_values import Blob, Mapping, Tensor
from scanner.adapter.pickles_zip import Archive, Member, open_archive
from scanner.errors import LimitExceededError, MalformedFileError, SkipError, UnsupportedError

__all__ = [
    "Contents", "PickleGlobal", "PickleProblem", "PickleReport", "inspect_pickle", "looks_like_pickle", "read_contents",
    "sniff",
]  # fmt: skip

MAX_STREAM_BYTES = 32 * 1024**2
"""One pickle stream, without the storages that lie beside it."""
MAX_STACKED = 16
MAX_NESTING = 2
MAX_TAR_MEMBERS = 64
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""What torch.save wrote first before it wrote zip archives (torch.serialization.MAGIC_NUMBER)."""
_ZIP_TAIL = 22 + 65_535
_PICKLE_NAMES = (".pkl", ".pickle", ".p", ".pk")
_OPENERS = b"c(]}il"
"""First bytes of a stream without a protocol mark that could import something."""


@dataclass
class Contents:
    """A file's first object, and where the bytes of its storages are."""

    kind: Kind
    findings: Findings
    root: Any = None
    storages: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Key -> (place in the file, bytes), of those that can be mapped."""
    packed: dict[str, Member] = field(default_factory=dict)
    """Key -> member, of those that are compressed."""
    archive: Archive | None = None


def sniff(path: Path) -> Literal["safetensors", "zip", "pickle", "tar", "other"]:
    """What a file is by its first bytes; a pickle without a protocol mark, which has none, is `other`."""
    with path.open("rb") as stream:
        head = stream.read(512)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") + 8 <= path.stat().st_size:
        return "safetensors"
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if len(head) > 2 and head[0] == 0x80 and head[1] <= 5:
        return "pickle"
    if head[257:262] == b"ustar":
        return "tar"
    return "other"


def looks_like_pickle(path: Path) -> bool:
    """Whether a file is, by its content, something that a pickle loader would take."""
    return sniff(path) in ("zip", "pickle", "tar")


def inspect_pickle(path: Path) -> PickleReport:
    """Read every opcode of every stream in a file. Nothing is imported, called or written.

    A file that cannot be read to its end has a problem that says so; no file raises.
    """
    with read_contents(path) as contents:
        return contents.findings.report(contents.kind)


@contextmanager
def read_contents(path: Path) -> Iterator[Contents]:
    """Map a file, read its streams, and keep it mapped for the block."""
    if path.stat().st_size == 0:
        contents = Contents("other", Findings())
        contents.findings.add_error("empty", MalformedFileError("the file is empty"), path.name[:80])
        yield contents
        return
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        kind = sniff(path)
        if kind == "zip":
            yield _zip(data, path, 0)
        elif kind == "tar":
            yield _tar(path)
        else:
            contents = _raw(data)
            if kind != "safetensors" and data.find(b"PK\x05\x06", max(0, len(data) - _ZIP_TAIL)) >= 0:
                # Whoever reads from the end sees an archive, whoever begins at the beginning a stream.
                contents.findings.merge(_zip(data, path, 0).findings)
                contents.findings.add_problem("two_formats", "the file is a stream and an archive at once")
            yield contents


def _zip(data: Blob, path: Path | None, depth: int) -> Contents:
    contents = Contents("zip", Findings())
    found = contents.findings
    try:
        archive = contents.archive = open_archive(data, found)
    except SkipError as error:
        found.add_error("bad_zip", error, "the archive")
        return contents
    roots = [member for member in archive.members if member.name.endswith("/data.pkl") and member.name.count("/") == 1]
    prefix = roots[0].name[: -len("data.pkl")] if len(roots) == 1 else None
    if prefix is not None:
        contents.kind = "torch_zip"
    for member in archive.members:
        is_storage = prefix is not None and member.name.startswith(f"{prefix}data/")
        if is_storage:
            key = member.name[len(f"{prefix}data/") :]
            if member.is_stored:
                contents.storages[key] = (member.begin, member.size)
            else:
                contents.packed[key] = member
            archive.check(member, found)
            continue
        if member.name.startswith(f"{prefix}code/") or member.name.endswith("/constants.pkl"):
            found.add_problem("torchscript", f"the archive holds compiled code: {member.name[:80]}")
        try:
            body = archive.read(member, MAX_STREAM_BYTES, found)
        except SkipError as error:
            found.add_error("unread_member", error, member.name[:80])
            continue
        if body[:4] == b"PK\x03\x04":
            if depth < MAX_NESTING:
                found.merge(_zip(body, None, depth + 1).findings)
            else:
                found.add_problem("nested_archives", f"archives within archives: {member.name[:80]}")
        elif member.name.lower().endswith(_PICKLE_NAMES):
            value = _streams(body, 0, len(body), member.name[:80], found)
            if member.name == f"{prefix}data.pkl":
                contents.root = value
        else:
            _perhaps(body, member.name[:80], found)
    if contents.archive.byte_order(prefix) == "big":
        found.add_error("byte_order", UnsupportedError("big-endian storages are not read", "big_endian"), "the archive")
    return contents


def _raw(data: Blob) -> Contents:
    contents = Contents("pickle", Findings())
    found, end = contents.findings, len(data)
    machine = Machine(data, found, "the stream")
    limit = min(end, MAX_STREAM_BYTES)
    try:
        value, at = machine.run(0, limit)
        if value == _LEGACY_MAGIC and type(value) is int:
            contents.kind = "torch_legacy"
            _, at = machine.run(at, limit)  # the protocol's version
            _, at = machine.run(at, limit)  # sizes of the writer's numbers
            contents.root, at = machine.run(at, limit)
            keys, at = machine.run(at, limit)
            _legacy_storages(contents, data, keys, at)
            return contents
        contents.root = value
    except SkipError as error:
        found.add_error("malformed", error, "the stream")
        return contents
    _after(machine, data, at, end, "the stream", found)
    return contents


def _legacy_storages(contents: Contents, data: Blob, keys: Any, at: int) -> None:
    """Raw bytes one after the other, each behind its number of elements."""
    sizes = _storage_bytes(contents.root)
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in sizes:
            contents.findings.add_problem("unknown_storage", "the file lists a storage that nothing uses")
            return
        begin, size = at + 8, sizes[key]
        if begin + size > len(data):
            contents.findings.add_problem("truncated", "the file ends inside of a storage")
            return
        contents.storages[key] = (begin, size)
        at = begin + size
    if at != len(data):
        contents.findings.add_problem("trailing_bytes", f"{len(data) - at:,} bytes follow the last storage")


def _storage_bytes(root: Any) -> dict[str, int]:
    sizes: dict[str, int] = {}
    todo, seen = [root], {id(root)}

    def add(items: Iterable[Any]) -> None:
        # A list may hold itself, or another one a thousand times: each is looked into once.
        for item in items:
            if isinstance(item, Tensor | Mapping | list | tuple) and id(item) not in seen:
                seen.add(id(item))
                todo.append(item)

    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            sizes[value.storage.key] = value.storage.count * ITEM_BYTES.get(value.storage.dtype, 1)
        elif isinstance(value, Mapping):
            add(item for _, item in value.pairs)
        elif isinstance(value, list | tuple):
            add(value)
    return sizes


def _tar(path: Path) -> Contents:
    import tarfile  # slow to import, and hardly ever needed

    contents = Contents("tar", Findings())
    found = contents.findings
    found.add_error("tar", UnsupportedError("torch's tar archives are not read", "layout_tar"), "the archive")
    try:
        with tarfile.open(path, "r:") as archive:
            for number, entry in enumerate(archive):
                if number >= MAX_TAR_MEMBERS:
                    raise LimitExceededError("members of a tar archive", MAX_TAR_MEMBERS, number + 1)
                if entry.isfile() and entry.size <= MAX_STREAM_BYTES:
                    member = archive.extractfile(entry)
                    body = member.read(MAX_STREAM_BYTES) if member else b""
                    if body[:1] == b"\x80":
                        _streams(body, 0, len(body), entry.name[:80], found)
                    else:
                        _perhaps(body, entry.name[:80], found)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        found.add_error(
            "bad_tar", MalformedFileError(f"the tar archive cannot be read: {str(error)[:80]}"), "the archive"
        )
    except LimitExceededError as error:
        found.add_error("bad_tar", error, "the archive")
    return contents


def _streams(data: Blob, start: int, end: int, where: str, found: Findings) -> Any:
    """All streams from a place on; the first one's value."""
    machine = Machine(data, found, where)
    try:
        value, at = machine.run(start, end)
    except SkipError as error:
        found.add_error("malformed", error, where)
        return None
    _after(machine, data, at, end, where, found)
    return value


def _after(machine: Machine, data: Blob, at: int, end: int, where: str, found: Findings) -> None:
    """A loader stops at the first STOP; another one that is called twice does not."""
    for _ in range(MAX_STACKED):
        if at >= end:
            return
        try:
            _, at = machine.run(at, min(end, at + MAX_STREAM_BYTES))
        except SkipError:
            break
        found.add_problem("stacked_pickles", f"{where}: another pickle follows the first")
    if at < end:
        found.add_problem("trailing_bytes", f"{where}: {end - at:,} bytes follow the end of the pickle")


def _perhaps(body: Blob, where: str, found: Findings) -> None:
    """A member without a telling name: it counts where it is a complete stream that imports something."""
    if body[:1] == b"\x80" or (body and body[0] in _OPENERS):
        trial = Findings()
        with suppress(SkipError):
            Machine(body, trial, where).run(0, len(body))
        if trial.imports:
            found.merge(trial)

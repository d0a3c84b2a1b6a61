"""Pickle files, read without unpickling: what would they import, and may their tensors be trusted to be just that?

`inspect_pickle` answers the first for any file, `open_torch_pickle` gives the tensors of a file that has nothing but
the names of tensors in it.
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from scanner.adapter.pickles_machine import MAX_PICKLE_BYTES
from scanner.adapter.pickles_report import Findings, Kind, PickleGlobal, PickleProblem, PickleReport, clean
from scanner.adapter.pickles_streams import Stream, probe_stream, read_stream
from scanner.adapter.pickles_tar import is_tar, read_tar
from scanner.adapter.pickles_torch import TorchFile, legacy_storages, state_tensors, zip_storages
from scanner.adapter.pickles_values import Blob
from scanner.adapter.pickles_zip import Archive, Budget, Member, find_end, read_archive, unpack
from scanner.errors import LimitExceededError, MalformedFileError, SkipError, UnsupportedError

__all__ = [
    "PickleGlobal",
    "PickleProblem",
    "PickleReport",
    "TorchFile",
    "inspect_pickle",
    "looks_like_pickle",
    "open_torch_pickle",
    "sniff",
]

MAX_ARCHIVE_DEPTH = 3
MAX_GAPS_READ = 1_000
_ZIP, _PICKLE_NAME = b"PK\x03\x04", re.compile(r"\.(?:pkl|pickle|pk|p|bin|pt|pth|ckpt|joblib|dill)", re.IGNORECASE)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
}


@dataclass
class _Inspection:
    """One file while it is read; what it takes to open it afterwards."""

    findings: Findings = field(default_factory=Findings)
    budget: Budget = field(default_factory=Budget)
    kind: Kind = "other"
    stream: Stream | None = None
    archive: Archive | None = None
    root: str = ""
    """Prefix of a torch archive, with its slash."""


def sniff(path: Path) -> Literal["safetensors", "zip", "pickle", "tar", "other"]:
    """What the bytes are, whatever the name says."""
    data = _map(path)
    if len(data) >= 10 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
        return "safetensors"
    if data[:4] == _ZIP:
        return "zip"
    if probe_stream(data, 0, len(data), path.name, Budget(), alone=True) or _is_headed(data):
        return "pickle"
    if is_tar(data, 0):
        return "tar"
    return "zip" if find_end(data) >= 0 else "other"


def looks_like_pickle(path: Path) -> bool:
    """Whether a loader that takes pickles would begin to run this file: a stream, or an archive of torch's."""
    kind = sniff(path)
    return kind == "pickle" or (kind in ("zip", "tar") and inspect_pickle(path).kind != "other")


def inspect_pickle(path: Path) -> PickleReport:
    """Read a file that may be a pickle, or hold some, without running anything.

    Every limit that is met is a problem of the report (`limit_exceeded`), with the limit and the value.
    """
    inspection = _inspect(_map(path), clean(path.name), 0)
    return inspection.findings.report(inspection.kind)


def open_torch_pickle(path: Path) -> TorchFile:
    """The tensors of a state dict, rebuilt by lorascope's own reader.

    Raises:
        UnsupportedError: `dangerous_pickle` when any other name than those of tensors is imported, `no_state_dict`
            when what was saved is no dict, `legacy_tar` for the format of 2017.
        LimitExceededError: something in it is too large.
        MalformedFileError: any problem that `inspect_pickle` names, or a tensor that does not fit its storage.
    """
    data = _map(path)
    inspection = _inspect(data, clean(path.name), 0)
    report = inspection.findings.report(inspection.kind)
    bad = next((g for g in report.globals if g.level == "dangerous"), None)
    bad = bad or next((g for g in report.globals if g.level != "allowed"), None)
    if bad:
        raise UnsupportedError(
            f"{bad.where} imports {bad.module}.{bad.name}, which no tensor needs", "dangerous_pickle"
        )
    if inspection.kind == "tar":
        raise UnsupportedError("torch's tar format of 2017 is not read", "legacy_tar")
    if inspection.findings.error:
        raise inspection.findings.error
    stream = inspection.stream
    if stream is None or not stream.values:
        raise MalformedFileError("the file is no pickle of torch's")
    if inspection.kind == "torch_zip" and inspection.archive:
        tensors, others = state_tensors(stream.values[0])
        storages, little = zip_storages(data, inspection.archive, inspection.root, tensors)
    elif inspection.kind == "torch_legacy":
        tensors, others = state_tensors(stream.values[3])
        storages, little = legacy_storages(data, stream, tensors), stream.little_endian
    else:
        tensors, others = state_tensors(stream.values[0])
        storages, little = {}, True
    return TorchFile(tensors, others, storages, little_endian=little)


def _map(path: Path) -> Blob:
    with path.open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # an empty file cannot be mapped
            return b""


def _is_headed(data: Blob) -> bool:
    return len(data) > 2 and data[0] == 0x80 and 1 < data[1] <= 5 and data[2] != 0


def _inspect(data: Blob, where: str, depth: int, budget: Budget | None = None) -> _Inspection:
    result = _Inspection()
    result.budget = budget or result.budget
    try:
        _inspect_formats(data, where, depth, result)
    except SkipError as error:
        result.findings.add_error("bad_archive", error, where)
    return result


def _inspect_formats(data: Blob, where: str, depth: int, result: _Inspection) -> None:
    """A file can be several things at once: each loader picks the one it knows."""
    kinds: list[Kind] = []
    stream = _raw_stream(data, where, result)
    if stream is not None:
        kinds.append("torch_legacy" if stream.is_legacy else "pickle")
        result.stream = stream
    if is_tar(data, 0):
        kinds.append("tar")
        _read_members(data, read_tar(data, where, result.findings), where, depth, result)
    if data[:4] == _ZIP or find_end(data) >= 0:
        # An end record may lie in any file's last bytes by chance: it counts when a directory can be read with it.
        try:
            kinds.append(_inspect_zip(data, where, depth, result))
        except MalformedFileError as error:
            if data[:4] == _ZIP or data[-22:-18] + data[-2:] == b"PK\x05\x06\0\0":
                kinds.append("zip")
                result.findings.add_error("bad_archive", error, where)
                _read_gaps(data, ((0, len(data)),), where, depth, result)
    result.kind = kinds[0] if kinds else "other"
    if len(kinds) > 1:
        result.findings.add_problem("polyglot", f"{where}: is {' and '.join(kinds)} at once")
        result.stream = None
    if not kinds:
        packed = next((name for magic, name in _COMPRESSED.items() if data[: len(magic)] == magic), None)
        if packed:
            result.findings.add_problem("compressed_stream", f"{where}: compressed with {packed}, which is not read")
        else:
            result.findings.add_problem("not_a_pickle", f"{where}: neither a pickle nor an archive")


def _raw_stream(data: Blob, where: str, result: _Inspection) -> Stream | None:
    probe = probe_stream(data, 0, len(data), where, result.budget, alone=True)
    if probe is None:
        if not _is_headed(data):
            return None
        scratch = Findings()
        probe = read_stream(data, 0, len(data), where, scratch, result.budget), scratch
    stream, found = probe
    result.findings.merge(found)
    _check_end(data, stream, 0, len(data), where, result.findings, alone=True)
    return stream


def _check_end(
    data: Blob, stream: Stream, begin: int, end: int, where: str, findings: Findings, *, alone: bool
) -> None:
    """Name what is wrong with how a stream ends."""
    if stream.error:
        findings.add_error("broken_stream", stream.error, where)
    if alone and stream.is_legacy:
        if len(stream.values) < 5:
            findings.add_problem("broken_stream", f"{where}: an old torch file has five pickles, this one fewer")
        return  # where its storages end is checked when the file is opened
    if len(stream.values) > 1:
        count = len(stream.values)
        findings.add_problem("stacked_pickles", f"{where}: {count} pickles follow one another")
    if stream.values and stream.end < end:
        findings.add_problem("trailing_data", f"{where}: {end - stream.end:,} bytes after the last pickle")


def _inspect_zip(data: Blob, where: str, depth: int, result: _Inspection) -> Kind:
    found = Findings()
    archive = read_archive(data, where, found)
    result.findings.merge(found)
    mains = [member for member in archive.members if re.fullmatch(r"[^/]+/data\.pkl", member.name, re.IGNORECASE)]
    result.archive = archive
    if mains:
        result.root = mains[0].name[: -len("data.pkl")]
        strangers = [m.name for m in archive.members if not m.name.startswith(result.root)]
        if strangers or len(mains) > 1:
            named = clean(strangers[0]) if strangers else clean(mains[1].name)
            result.findings.add_problem("several_roots", f"{where}!{named}: a torch archive has one folder")
        code = [m.name for m in archive.members if m.name[len(result.root) :].startswith(("code/", "constants.pkl"))]
        if code:
            result.findings.add_problem("torchscript", f"{where}!{clean(code[0])}: the archive is a program")
    _read_members(data, archive.members, where, depth, result, main=mains[0] if mains else None)
    _read_gaps(data, archive.gaps, where, depth, result)
    return "torch_zip" if mains else "zip"


def _read_members(
    data: Blob, members: tuple[Member, ...], where: str, depth: int, result: _Inspection, main: Member | None = None
) -> None:
    findings = result.findings
    packed = 0
    for member in members:
        packed += member.packed
        if packed > len(data):  # members that lie upon one another multiply the work
            raise LimitExceededError("bytes of all members of an archive", len(data), packed)
        place = f"{where}!{clean(member.name)}"
        # A stored member is read where it lies; the checksum needs no copy.
        keep = 0 if member.is_stored else MAX_PICKLE_BYTES
        inflated = unpack(data, member, keep, result.budget, where, findings)
        body, begin = (data, member.begin) if member.is_stored else (inflated, 0)
        end = begin + (member.size if member.is_stored else len(inflated))
        is_main = member is main
        if is_main or _PICKLE_NAME.search(member.name.rsplit("/", 1)[-1]):
            scratch = Findings()
            stream = read_stream(body, begin, end, place, scratch, result.budget)
            if is_main or stream.values or scratch.imports or stream.opcodes > 1:
                findings.merge(scratch)
                _check_end(body, stream, begin, end, place, findings, alone=False)
            if is_main:
                result.stream = stream
        elif probe := probe_stream(body, begin, end, place, result.budget):
            findings.merge(probe[1])
            _check_end(body, probe[0], begin, end, place, findings, alone=False)
        if body[begin : min(begin + 4, end)] == _ZIP or (end - begin >= 512 and is_tar(body, begin)):
            _read_nested(body, begin, end, place, depth, result)


def _read_nested(data: Blob, begin: int, end: int, where: str, depth: int, result: _Inspection) -> None:
    result.findings.add_problem("nested_archive", f"{where}: an archive in an archive")
    if depth + 1 > MAX_ARCHIVE_DEPTH:
        raise LimitExceededError("nesting of archives", MAX_ARCHIVE_DEPTH, depth + 1)
    result.budget.take(end - begin)
    inner = _inspect(data[begin:end], where, depth + 1, result.budget)
    result.findings.merge(inner.findings)


def _read_gaps(data: Blob, gaps: tuple[tuple[int, int], ...], where: str, depth: int, result: _Inspection) -> None:
    """Bytes that the directory does not mention: a reader that goes by local headers sees members in them."""
    count = 0
    for begin, end in gaps:
        at = data.find(_ZIP, begin, end)
        while at >= 0:
            count += 1
            if count > MAX_GAPS_READ:
                raise LimitExceededError("hidden members of an archive", MAX_GAPS_READ, count)
            start = at + 30 + sum(int.from_bytes(data[at + i : at + i + 2], "little") for i in (26, 28))
            place = f"{where}!hidden at {at:,}"
            if start < end and (probe := probe_stream(data, start, end, place, result.budget)):
                result.findings.merge(probe[1])
            at = data.find(_ZIP, at + 4, end)

"""Files on disk as the Hub describes them: git blobs, and LFS objects behind a pointer.

Nothing is ever opened by a name that came over the wire. A request's path is looked up among the files that
were found by walking the repo's folder, so `..`, absolute paths and encoded slashes simply are not there.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

LFS_THRESHOLD_BYTES = 10 * 1024 * 1024
# fmt: off
LFS_SUFFIXES = (
    ".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".ftz", ".gguf", ".gz", ".h5", ".joblib", ".mlmodel",
    ".model", ".msgpack", ".npy", ".npz", ".onnx", ".ot", ".parquet", ".pb", ".pickle", ".pkl", ".pt",
    ".pth", ".rar", ".safetensors", ".tar", ".tflite", ".tgz", ".wasm", ".xz", ".zip", ".zst",
)
# fmt: on
SETTINGS_NAME = ".hub.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,95}")
BLOBS_FOLDER = ".hub/blobs"
"""Contents of replaced files, by their ETag: what an old commit still serves (`actions.commit`)."""
_CHUNK_BYTES = 1 << 20
# A file rewritten within one clock tick keeps its timestamps, so a very young stamp proves nothing (git calls such
# an index entry "racily clean"). Ticks are 4-10 ms on common kernels.
_RACY_NS = 30_000_000


Stamp: TypeAlias = tuple[int, int, int, int]
"""mtime_ns, ctime_ns, size, inode."""


class FoundFile(NamedTuple):
    """One regular file under a repo's folder. `stamp` changes whenever the content may have changed."""

    path: str
    disk: str
    stamp: Stamp

    @property
    def mtime_ns(self) -> int:
        return self.stamp[0]

    @property
    def size(self) -> int:
        return self.stamp[2]


@dataclass(frozen=True)
class FileEntry:
    """One file of one commit. `blob_id` is the git sha1 of the blob, or of the LFS pointer when `sha256` is set."""

    path: str
    disk: str
    size: int
    blob_id: str
    sha256: str | None
    mtime_ns: int

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob_id

    @property
    def pointer_size(self) -> int:
        return len(lfs_pointer(self.sha256 or "", self.size))


def stamp_of(status: os.stat_result) -> Stamp:
    """mtime alone can be set back by hand (`cp -p`, `touch -d`); the change time cannot."""
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)


def is_settled(stamp: Stamp, now_ns: int) -> bool:
    """Whether an equal stamp later on proves equal content. A clock ahead of ours is taken at its word."""
    return abs(now_ns - stamp[1]) > _RACY_NS


def walk_files(root: Path) -> Iterator[FoundFile]:
    """Every file of a repo that may be served, in no particular order.

    Hidden names are left out (`.gitattributes` excepted), links count only when they point at a servable file
    inside the same repo, and linked folders are never entered.
    """
    pending = [("", str(root))]
    while pending:
        prefix, folder = pending.pop()
        try:
            with os.scandir(folder) as entries:
                found = list(entries)
        except OSError:  # removed, or not readable: the repo is what can be read of it
            continue
        for entry in found:
            if not is_servable_name(entry.name):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != ".gitattributes":
                        pending.append((f"{prefix}{entry.name}/", entry.path))
                    continue
                disk = _inner_target(root, entry.path) if entry.is_symlink() else entry.path
                if disk is None:
                    continue
                status = entry.stat(follow_symlinks=False) if disk == entry.path else Path(disk).lstat()
            except OSError:  # vanished between the listing and the look
                continue
            if stat.S_ISREG(status.st_mode):
                yield FoundFile(f"{prefix}{entry.name}", disk, stamp_of(status))


def hash_file(found: FoundFile) -> FileEntry:
    """Reads the whole file once. Raises OSError when it is gone or unreadable."""
    name = found.path.lower()
    with Path(found.disk).open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        if size <= LFS_THRESHOLD_BYTES and not name.endswith(LFS_SUFFIXES):
            content = handle.read(LFS_THRESHOLD_BYTES + 1)
            return FileEntry(found.path, found.disk, len(content), git_blob_id(content), None, found.mtime_ns)
        digest = hashlib.sha256()
        size = 0
        while chunk := handle.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    sha256 = digest.hexdigest()
    return FileEntry(found.path, found.disk, size, git_blob_id(lfs_pointer(sha256, size)), sha256, found.mtime_ns)


def hash_files(
    found: Iterable[FoundFile], known: dict[FoundFile, FileEntry]
) -> tuple[dict[FoundFile, FileEntry], bool]:
    """Entries of all readable files, re-using `known` where the stamp is conclusive.

    The second value says whether every stamp was conclusive, that is, whether the result may be trusted for as
    long as the stamps stay as they are.
    """
    entries: dict[FoundFile, FileEntry] = {}
    settled = True
    for file in found:
        is_conclusive = is_settled(file.stamp, time.time_ns())
        settled = settled and is_conclusive
        entry = known.get(file) if is_conclusive else None
        if entry is None:
            try:
                entry = hash_file(file)
            except OSError:
                settled = False
                continue
        entries[file] = entry
    return entries, settled


def git_blob_id(content: bytes) -> str:
    return _git_object_id(b"blob", content)


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def tree_id(entries: Iterable[FileEntry], history: str = "") -> str:
    """One hash over (path, blob) of a set of files: the same content gives the same id, on any machine.

    Only a force push, which gives a repo another `history`, makes another id of the same files.
    """
    lines = sorted(f"{entry.path}\0{entry.blob_id}\0{entry.size}\n" for entry in entries)
    return _git_object_id(b"tree", "".join([*lines, history]).encode("utf-8", "replace"))


def _git_object_id(kind: bytes, content: bytes) -> str:
    return hashlib.sha1(b"%s %d\0" % (kind, len(content)) + content, usedforsecurity=False).hexdigest()


def is_name(text: str) -> bool:
    """An owner or a repo's own name, in the letters that the Hub allows."""
    return _NAME.fullmatch(text) is not None


def is_repo_name(text: str) -> bool:
    """`owner/name`."""
    owner, slash, name = text.partition("/")
    return bool(slash) and is_name(owner) and is_name(name)


def is_servable_name(name: str) -> bool:
    """Whether a file or folder of this name is part of a repo."""
    if name.startswith(".") and name != ".gitattributes":
        return False
    try:
        name.encode()
    except UnicodeEncodeError:  # not UTF-8 on disk: JSON and URLs could not name it
        return False
    return True


def _inner_target(root: Path, link: str) -> str | None:
    """Where a link leads, if that is a servable place inside `root`."""
    real_root = os.path.realpath(root)
    target = os.path.realpath(link)
    if not target.startswith(real_root + os.sep):
        return None
    inner = target[len(real_root) + 1 :]
    return target if all(is_servable_name(part) for part in Path(inner).parts) else None

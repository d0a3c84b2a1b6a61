"""Where an adapter's files come from: a Hub repo at a pinned commit, or a folder on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from scanner.errors import LimitExceededError, UnsupportedError, UsageError
from scanner.model import RepoRef

if TYPE_CHECKING:  # a scan of folders needs no Hub client, whose import is slow
    from scanner.hub.client import HubClient

__all__ = ["FolderFiles", "HubFiles", "RepoFiles", "folder_ref", "folder_uid"]

MAX_DEPTH = 100
"""Folders within folders. What lies deeper counts as unreadable."""


class RepoFiles(Protocol):
    """The files of one repo. All methods raise only lorascope's errors."""

    def names(self) -> list[str]:
        """Paths inside the repo, with forward slashes."""
        ...

    def fetch(self, name: str, limit_bytes: int, *, is_small: bool = False) -> Path:
        """A verified local copy of one file of at most `limit_bytes`."""
        ...

    def sha256(self, name: str) -> str | None:
        """sha256 of a file without fetching it, where its source can tell."""
        ...


class HubFiles:
    """A Hub repo at its pinned commit; downloads go into a folder that the caller removes."""

    def __init__(self, client: HubClient, repo: RepoRef, folder: Path) -> None:
        from scanner.hub.download import Downloader

        self._client, self._repo = client, repo
        self._downloader = Downloader(client.endpoint, folder)
        self._fetched_bytes = 0

    def names(self) -> list[str]:
        """From the listing, or one more request; a repo without commits has no files.

        Raises:
            LimitExceededError: more than `settings.max_files_per_repo`.
        """
        if self._repo.commit_sha is None:
            return []
        limit = self._client.settings.max_files_per_repo
        if self._repo.files is None:
            return sorted(file.path for file in self._client.files(self._repo))
        if len(self._repo.files) > limit:
            raise LimitExceededError("number of files in the repo", limit, len(self._repo.files))
        return sorted(self._repo.files)

    def fetch(self, name: str, limit_bytes: int, *, is_small: bool = False) -> Path:
        """Download and verify.

        Raises:
            LimitExceededError: the file, or all files of the repo together, are too large.
        """
        _check_name(name)
        budget = self._client.settings.max_repo_bytes
        left = budget - self._fetched_bytes
        if left <= 0:
            raise LimitExceededError("downloads of one repo in bytes", budget, self._fetched_bytes)
        commit, limit = str(self._repo.commit_sha), min(limit_bytes, left)
        local = self._client.call(
            lambda: self._downloader.fetch(str(self._repo.repo_id), commit, name, limit, is_small=is_small)
        )
        self._fetched_bytes += local.stat().st_size
        return local

    def sha256(self, name: str) -> str | None:
        """One request, from which `fetch` goes on; only LFS files have one."""
        _check_name(name)
        repo_id, commit = str(self._repo.repo_id), str(self._repo.commit_sha)
        return self._client.call(lambda: self._downloader.announce(repo_id, commit, name)).sha256


def _check_name(name: str) -> None:
    """A stranger's file name becomes part of an address: it must stay inside of the repo's."""
    if any(part in ("", ".", "..") for part in name.split("/")) or any(ord(c) < 32 for c in name):
        raise UnsupportedError(f"{name!r:.200} is no name of a file in a repo", "unreadable")


@dataclass(frozen=True)
class FolderFiles:
    """A folder, or one weight file with the config beside it. Links are followed only where they stay inside."""

    target: Path
    max_files: int
    unreadable: list[str] = field(default_factory=list, repr=False, compare=False)
    """Subfolders that `names` could not look into, one result each."""
    _real: dict[str, Path] = field(default_factory=dict, repr=False, compare=False)

    @property
    def root(self) -> Path:
        """The folder."""
        return self.target if self.target.is_dir() else self.target.parent

    def names(self) -> list[str]:
        """All regular files and links below the folder.

        Raises:
            LimitExceededError: more than `max_files`.
            UnsupportedError: the folder cannot be read.
        """
        self._real.clear()
        self.unreadable.clear()
        if not self.target.is_dir():
            config = self.target.with_name("adapter_config.json")
            return [self._add(path) for path in (self.target, *([config] if config.exists() else []))]

        def closed(error: OSError) -> None:
            if error.filename is None or Path(error.filename) == self.target:
                raise UnsupportedError(f"cannot read {_utf8(str(self.target))}: {error.strerror}", "unreadable")
            self.unreadable.append(_utf8(Path(error.filename).relative_to(self.target).as_posix()))

        for folder, subfolders, files in os.walk(self.target, onerror=closed):
            inside = Path(folder).relative_to(self.target)
            if len(inside.parts) >= MAX_DEPTH and subfolders:
                self.unreadable.extend(_utf8((inside / name).as_posix()) for name in subfolders)
                subfolders.clear()
            for name in files:
                self._add(Path(folder) / name)
            if (count := len(self._real) + len(self.unreadable)) > self.max_files:
                raise LimitExceededError("number of files in the folder", self.max_files, count)
        return sorted(self._real)

    def _add(self, path: Path) -> str:
        """Shown and stored names are UTF-8, whatever the file system holds, and no two files share one."""
        shown = _utf8(path.relative_to(self.root).as_posix())
        self._real[shown] = path
        return shown

    def fetch(self, name: str, limit_bytes: int, *, is_small: bool = False) -> Path:
        """The file itself.

        Raises:
            UnsupportedError: a link that leads outside, a special file, or no permission.
            LimitExceededError: too large.
        """
        path = self._real.get(name, self.root / name)
        try:
            return self._checked(path, name, limit_bytes)
        except RuntimeError as error:  # how pathlib before 3.13 says it
            raise UnsupportedError(f"{name} is a link to itself", "unreadable") from error
        except OSError as error:  # its own text may hold a name that is no valid text
            raise UnsupportedError(f"cannot read {name}: {error.strerror}", "unreadable") from error

    def _checked(self, path: Path, name: str, limit_bytes: int) -> Path:
        real = path.resolve()
        if not any(real.is_relative_to(allowed) for allowed in self._allowed_roots()):
            raise UnsupportedError(f"{name} is a link that leads outside of the folder", "link_outside")
        if not real.is_file():
            raise UnsupportedError(f"{name} is not a regular file", "unreadable")
        if not os.access(real, os.R_OK):
            raise UnsupportedError(f"no permission to read {name}", "unreadable")
        if real.stat().st_size > limit_bytes:
            raise LimitExceededError(f"size of {name} in bytes", limit_bytes, real.stat().st_size)
        return path

    def sha256(self, name: str) -> str | None:
        """Unknown before the file is read."""
        return None

    def _allowed_roots(self) -> list[Path]:
        root = self.root.resolve()
        allowed = [root]
        # A Hub cache: models--owner--name/snapshots/<sha>/file -> ../../blobs/<etag>
        if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
            allowed.append(root.parent.parent / "blobs")
        return allowed


def folder_ref(target: str) -> RepoRef:
    """A folder (or file) as a repo without a commit.

    Raises:
        UsageError: it does not exist.
    """
    path = Path(target).expanduser()
    if not path.exists():
        raise UsageError(f"{target} does not exist")
    uid = _uid(path)
    return RepoRef(
        source=uid,
        repo_id=None,
        repo_uid=uid,
        commit_sha=None,
        owner=None,
        target=_utf8(target),
    )


def folder_uid(target: str) -> str | None:
    """`repo_uid` of an existing folder; None of anything else, which is a repo id."""
    try:
        path = Path(target).expanduser()
        return _uid(path) if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # no such user, a NUL byte
        return None


def _uid(path: Path) -> str:
    return f"folder:{_utf8(str(path.resolve()))}"


def _utf8(name: str) -> str:
    r"""A file name as valid text, a different one for each name.

    Bytes that are not UTF-8 are written as `\xff`. A backslash is written as `\x5c`, so that a name which spells an
    escape is told apart from one that needs it. All other names stay as they are.
    """
    return os.fsencode(name).replace(b"\\", b"\\x5c").decode("utf-8", "backslashreplace")

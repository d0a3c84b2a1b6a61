"""A folder of repos as a hub: snapshots that follow the disk, their history, and names old and new.

There is no database and no watcher. Each question looks at the folder again, and only what changed by its file
stamps is read again; the commits that this process has seen are kept, so that a client which pinned a commit gets
that commit or an error, never a mixture.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from scanner.hub.server.blobs import (
    BLOBS_FOLDER,
    SETTINGS_NAME,
    FileEntry,
    FoundFile,
    Stamp,
    hash_files,
    is_name,
    is_repo_name,
    is_settled,
    stamp_of,
    tree_id,
    walk_files,
)
from scanner.hub.server.cards import Card, ReadText, derive_card
from scanner.hub.server.locks import lock_of
from scanner.hub.server.settings import RepoSettings, read_settings

_MAX_COMMITS = 200
_MAX_DISPLACED = 100
BRANCH = "main"


@dataclass(frozen=True)
class RepoSnapshot:
    """One repo at one commit. Times are milliseconds since 1970."""

    id: str
    uid: str
    sha: str
    created_ms: int
    last_modified_ms: int
    files: tuple[FileEntry, ...]
    card: Card
    settings: RepoSettings

    @property
    def author(self) -> str:
        return self.id.partition("/")[0]

    @cached_property
    def by_path(self) -> dict[str, FileEntry]:
        return {entry.path: entry for entry in self.files}

    @cached_property
    def marks(self) -> frozenset[str]:
        """Everything `filter=` can ask for."""
        extra = (self.card.library_name, self.card.pipeline_tag)
        return frozenset(self.card.tags) | {mark for mark in extra if mark}


@dataclass
class _RepoState:
    """What is remembered of one repo between two looks at it."""

    entries: dict[FoundFile, FileEntry] = field(default_factory=dict)
    evidence: object = None
    commits: list[RepoSnapshot] = field(default_factory=list)


@dataclass(frozen=True)
class Scan:
    """All repos at one moment."""

    repos: tuple[RepoSnapshot, ...]

    @cached_property
    def by_name(self) -> dict[str, RepoSnapshot]:
        """Lower-case names, present ones winning over former ones."""
        former = {name.lower(): repo for repo in self.repos for name in repo.settings.renamed_from}
        return former | {repo.id.lower(): repo for repo in self.repos}

    @cached_property
    def children(self) -> Counter[tuple[str, str]]:
        """(uid of a base, relation) -> how many repos say so."""
        counts: Counter[tuple[str, str]] = Counter()
        for repo in self.repos:
            for base_id in repo.card.base_ids:
                base = self.by_name.get(base_id.lower())
                if base is not None and repo.card.relation is not None and not repo.settings.private:
                    counts[base.uid, repo.card.relation] += 1
        return counts


class HubFolder:
    """The repos under one directory, `<owner>/<repo>/` each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._shared = lock_of(directory)
        self._lock = self._shared.lock
        self._states: dict[str, _RepoState] = {}
        self._displaced: dict[str, _RepoState] = {}
        """By `_id`: repos whose name another one has taken, until they turn up under their new one."""
        self._names: dict[str, tuple[Stamp, frozenset[str]]] = {}
        self._changes_seen = -1
        self._scan = Scan(())
        self._scanned_at = -math.inf

    def scan(self, max_age_s: float = 0.0) -> Scan:
        """Every repo. A later page of one listing may do with a look that is `max_age_s` old."""
        with self._lock:
            is_current = self._changes_seen == self._shared.changes
            if is_current and time.monotonic() - self._scanned_at < max_age_s:
                return self._scan
            started_at, self._changes_seen = time.monotonic(), self._shared.changes
            found = {}
            for repo_id, root in self._roots():
                snapshot = self._look(repo_id, root)
                if snapshot is not None:
                    found[snapshot.id] = snapshot
            for gone in self._states.keys() - found.keys():
                del self._states[gone]
            repos = tuple(found[repo_id] for repo_id in sorted(found))
            # Unchanged repos are the same objects, so this is cheap, and it keeps the name index when all are.
            if repos != self._scan.repos:
                self._scan = Scan(repos)
            self._scanned_at = started_at
            return self._scan

    def find(self, repo_id: str) -> RepoSnapshot | None:
        """The head of the repo of exactly this name."""
        with self._lock:
            return self._look(repo_id)

    def find_by_any_name(self, name: str) -> RepoSnapshot | None:
        """By a former name, or by a name in other letters. Looks at names only: most are asked for in vain."""
        wanted, former = name.lower(), None
        with self._lock:
            for repo_id, root in self._roots():
                if repo_id.lower() == wanted:
                    return self._look(repo_id, root)
                if wanted in self._former_names(root):
                    former = (repo_id, root)
            return self._look(*former) if former is not None else None

    def _former_names(self, root: str) -> frozenset[str]:
        stamp = _settings_stamp(root)
        if stamp is None:
            return frozenset()
        known = self._names.get(root)
        if known is not None and known[0] == stamp:
            return known[1]
        is_conclusive = is_settled(stamp, time.time_ns())
        names = frozenset(name.lower() for name in read_settings(Path(root)).renamed_from)
        if is_conclusive:
            self._names[root] = (stamp, names)
        return names

    def _roots(self) -> Iterator[tuple[str, str]]:
        """(name, folder) of every repo."""
        for owner in _folders(str(self.directory)):
            for name in _folders(owner.path):
                yield f"{owner.name}/{name.name}", name.path

    def commits(self, repo_id: str) -> tuple[RepoSnapshot, ...]:
        """Newest first, as far back as this process has watched."""
        with self._lock:
            state = self._states.get(repo_id)
            return tuple(reversed(state.commits)) if state else ()

    def kept(self, repo_id: str, entry: FileEntry) -> FileEntry | None:
        """A file of an old commit whose content was put aside when it was replaced."""
        root = self._root(repo_id)
        if root is None:
            return None
        path = root / BLOBS_FOLDER / entry.etag
        try:
            status = path.lstat()
        except OSError:
            return None
        # A link on the way there could lead anywhere.
        is_inner = path.resolve() == root.resolve() / BLOBS_FOLDER / entry.etag
        is_there = is_inner and stat.S_ISREG(status.st_mode) and status.st_size == entry.size
        return replace(entry, disk=str(path)) if is_there else None

    def at(self, head: RepoSnapshot, revision: str) -> RepoSnapshot | None:
        """`main`, a full commit id, or the unambiguous start of one."""
        if revision in (BRANCH, f"refs/heads/{BRANCH}", head.sha):
            return head
        if not re.fullmatch(r"[0-9a-f]{7,40}", revision):
            return None
        matches = [commit for commit in self.commits(head.id) if commit.sha.startswith(revision)]
        if len(matches) != 1:
            return None
        # A repo's name, gating and counters are not part of a commit: an old one is shown with today's.
        return replace(matches[0], id=head.id, uid=head.uid, settings=head.settings)

    def _look(self, repo_id: str, folder: str | None = None) -> RepoSnapshot | None:
        """`folder` saves looking for it."""
        root = self._root(repo_id) if folder is None else Path(folder)
        if root is None:
            return None
        found = sorted(walk_files(root))
        settings_stamp = _settings_stamp(str(root))
        evidence = (tuple(found), settings_stamp)
        state = self._states.get(repo_id)
        if state is not None and evidence == state.evidence:
            return state.commits[-1]
        settled = settings_stamp is None or is_settled(settings_stamp, time.time_ns())
        settings = read_settings(root)
        uid = settings.uid or self._derive_uid(repo_id, settings)
        state = self._state_of(repo_id, uid, settings)
        state.entries, files_settled = hash_files(found, state.entries)
        try:
            snapshot = self._snapshot(repo_id, uid, root, state, settings)
        except OSError:  # removed while it was looked at
            return None
        before = state.commits[-1] if state.commits else snapshot
        if before.settings.history != settings.history or before.uid != snapshot.uid:
            state.commits = []  # a force push, or another repo under the name of one that is gone
        same = [commit for commit in state.commits if commit.sha != snapshot.sha]
        state.commits = [*same, snapshot][-_MAX_COMMITS:]
        state.evidence = evidence if settled and files_settled else None
        return snapshot

    def _state_of(self, repo_id: str, uid: str, settings: RepoSettings) -> _RepoState:
        """What is remembered of the repo that has this name now, be it from the time when it had another."""
        state = self._states.get(repo_id)
        if state is not None and state.commits and state.commits[-1].uid != uid:
            self._displaced[state.commits[-1].uid] = state
            while len(self._displaced) > _MAX_DISPLACED:
                del self._displaced[next(iter(self._displaced))]
            state = None
        if state is None:
            state = self._displaced.pop(uid, None) or self._former_state(uid, settings) or _RepoState()
        self._states[repo_id] = state
        return state

    def _former_state(self, uid: str, settings: RepoSettings) -> _RepoState | None:
        for name in reversed(settings.renamed_from):
            state = self._states.get(name)
            if state is not None and state.commits and state.commits[-1].uid == uid:
                return self._states.pop(name)
        return None

    def _snapshot(self, repo_id: str, uid: str, root: Path, state: _RepoState, settings: RepoSettings) -> RepoSnapshot:
        files = tuple(state.entries.values())
        sha = tree_id(files, settings.history or "")
        head = state.commits[-1] if state.commits else None
        now_ms = time.time_ns() // 1_000_000
        folder_ms = root.lstat().st_mtime_ns // 1_000_000
        times = [min(entry.mtime_ns // 1_000_000, now_ms) for entry in files] or [min(folder_ms, now_ms)]

        created = settings.created_ms
        if created is None:
            created = min([*times, *([head.created_ms] if head else [])])
        stated = settings.last_modified_ms or 0
        if head is None:
            modified = stated or max(times)
        elif head.sha == sha:
            is_first = len(state.commits) == 1
            modified = stated if stated and is_first else max(stated, head.last_modified_ms)
        else:
            # A deletion, or a file with an old date, leaves no newer file behind: then the change dates from now.
            newest = max(times)
            modified = max(stated, newest if newest > head.last_modified_ms else now_ms)
        paths = tuple(entry.path for entry in files)
        card = derive_card(paths, _reader({entry.path: entry for entry in files}), settings)
        return RepoSnapshot(repo_id, uid, sha, created, max(created, modified), files, card, settings)

    def _derive_uid(self, repo_id: str, settings: RepoSettings) -> str:
        """24 hex digits, as a Mongo ObjectId: creation time first, then a hash of the name it was created under.

        Without a stated creation time the first part comes from the hash too. File dates would be closer to the
        original, but they move when a folder is copied or edited, and an identity must not.
        """
        name = repo_id
        if settings.renamed_from and self._root(settings.renamed_from[0]) is None:
            name = settings.renamed_from[0]
        digest = hashlib.sha256(name.encode()).hexdigest()
        if settings.created_ms is None:
            return f"{0x62000000 + int(digest[16:22], 16):08x}{digest[:16]}"
        return f"{max(0, settings.created_ms // 1000) & 0xFFFFFFFF:08x}{digest[:16]}"

    def _root(self, repo_id: str) -> Path | None:
        if not is_repo_name(repo_id):
            return None
        owner, _, name = repo_id.partition("/")
        folder = self.directory / owner
        try:
            # Links at these two levels could lead anywhere: they are not repos.
            if stat.S_ISDIR(folder.lstat().st_mode) and stat.S_ISDIR((folder / name).lstat().st_mode):
                return folder / name
        except OSError:
            return None
        return None


def _folders(directory: str) -> list[os.DirEntry[str]]:
    """Links at these levels could lead anywhere: they are not repos."""
    try:
        with os.scandir(directory) as entries:
            return [entry for entry in entries if is_name(entry.name) and entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _settings_stamp(root: str) -> Stamp | None:
    try:
        return stamp_of(os.lstat(f"{root}/{SETTINGS_NAME}"))
    except OSError:
        return None


def _reader(by_path: dict[str, FileEntry]) -> ReadText:
    def read(path: str, limit_bytes: int) -> bytes | None:
        entry = by_path.get(path)
        if entry is None or entry.size > limit_bytes:
            return None
        try:
            with Path(entry.disk).open("rb") as handle:
                return handle.read(limit_bytes)
        except OSError:
            return None

    return read

"""Stage 0: what is new on the Hub since the last crawl."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol

from scanner.errors import AccessDeniedError, SkipError, TransientError, UsageError
from scanner.hub.client import HubClient
from scanner.model import MAX_TRIES, RepoEvent, RepoRef

__all__ = ["Memory", "Poll", "parse_time", "poll_hub"]

_TAGS = ("peft", "lora")
"""Neither marks every adapter: diffusers LoRAs lack the first, cards written by hand the second."""


class Seen(Protocol):
    """What earlier crawls made of a repo at one commit."""

    @property
    def tries(self) -> int: ...
    @property
    def unfinished(self) -> bool: ...
    @property
    def refused(self) -> bool: ...
    @property
    def gated(self) -> bool: ...
    @property
    def disabled(self) -> bool: ...


class Due(Protocol):
    """A repo to be asked for by name."""

    @property
    def repo_uid(self) -> str: ...
    @property
    def repo_id(self) -> str: ...
    @property
    def commit_sha(self) -> str | None: ...
    @property
    def refused(self) -> bool: ...


class Memory(Protocol):
    """What a poll asks of earlier crawls; `scanner.store.CrawlMemory` answers from the store."""

    def seen(self, uids: Collection[str], /) -> Mapping[tuple[str, str | None], Seen]:
        """What is known of some repos, by (repo `_id`, commit sha)."""
        ...

    def names(self, uids: Collection[str], /) -> Mapping[str, str]:
        """The name that each of some repos was last known by."""
        ...

    def due(self, now: datetime, recheck_after_s: float, limit: int, /) -> Sequence[Due]:
        """Repos to look at again although no listing may bring them back."""
        ...


@dataclass(frozen=True)
class Poll:
    """What one crawl has to do."""

    repos: tuple[RepoRef, ...]
    """New or changed repos, the oldest event first."""
    n_listed: int
    n_left: int
    """Repos that --limit leaves for the next crawl."""
    watermark: datetime | None
    """Everything up to here will have been scanned, or is remembered as unfinished, when these repos are."""
    events: tuple[RepoEvent, ...] = ()
    """Renames, and what became of repos that were asked for again."""


def parse_time(text: str) -> datetime:
    """ISO 8601; a time without a zone is UTC.

    Raises:
        UsageError: not a time.
    """
    try:
        value = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is not an ISO 8601 time such as 2026-11-01 or 2026-11-01T12:00:00Z") from error
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def poll_hub(
    client: HubClient,
    memory: Memory,
    *,
    watermark: datetime | None = None,
    since: datetime | None = None,
    limit: int | None = None,
    base: str | None = None,
) -> Poll:
    """List new and changed adapter repos, and those that earlier crawls could not finish.

    The window begins `settings.overlap_s` before the watermark, because a listing moves while it is read; what is
    already known at its commit is dropped. Repos appear by creation time and again by modification time: they are
    often created empty and filled later. Without watermark and `since` the window is the newest
    `settings.first_crawl_limit` repos of each listing. Repos that failed before, and refused ones after a while, are
    asked for by name where the window does not hold them.

    Args:
        client: the Hub.
        memory: what earlier crawls have seen.
        watermark: of the last crawl.
        since: begin here instead.
        limit: at most so many repos, the oldest first, so that the next crawl goes on behind them. Default:
            `settings.crawl_limit`.
        base: only adapters of this base model, and nothing asked for by name.

    Raises:
        StopError: the Hub cannot be reached.
        TransientError: a listing page failed after all tries.
    """
    now = datetime.now(UTC)
    start = since
    if start is None and watermark is not None:
        start = watermark - timedelta(seconds=client.settings.overlap_s)
    listed = _listed(client, start, base)
    asked, events = ({}, []) if base else _asked(client, memory, listed, now)
    found = listed | asked
    events += _renamed(memory, found)
    seen = memory.seen(list(found))
    new = []
    for repo in found.values():
        before = seen.get((repo.repo_uid, repo.commit_sha))
        if before is None or _is_open(repo, before, is_asked=repo.repo_uid in asked):
            new.append(replace(repo, tries=before.tries if before else 0))
    new.sort(key=lambda repo: (_event_time(repo), repo.repo_uid))
    taken = new[: limit or client.settings.crawl_limit]
    reached = watermark
    if since is None or watermark is None or since <= watermark:
        # Starting later than the watermark leaves a gap behind, so the watermark stays where it was.
        was_cut = len(taken) < len(new)
        last = [repo for repo in taken if repo.repo_uid in listed] if was_cut else list(listed.values())
        newest = max((_event_time(repo) for repo in last), default=watermark)
        reached = newest if was_cut or watermark is None else max(watermark, newest or watermark)
    if reached is not None:
        reached = min(reached, now)  # a repo that claims a date in the future must not hide everything before it
    return Poll(tuple(taken), len(listed), len(new) - len(taken), reached, tuple(events))


def _listed(client: HubClient, start: datetime | None, base: str | None) -> dict[str, RepoRef]:
    """The window of all listings, by `_id`."""
    found: dict[str, RepoRef] = {}
    for sort in ("createdAt", "lastModified"):
        for tag in _TAGS:
            for number, repo in enumerate(client.iter_adapters(sort, tag, base)):
                stamp = repo.created_at if sort == "createdAt" else repo.last_modified
                if start is None and number >= client.settings.first_crawl_limit:
                    break
                if start is not None and stamp is not None and datetime.fromisoformat(stamp) < start:
                    break
                found[repo.repo_uid] = repo
    return found


def _asked(
    client: HubClient, memory: Memory, listed: Mapping[str, RepoRef], now: datetime
) -> tuple[dict[str, RepoRef], list[RepoEvent]]:
    """Repos that are due although no listing brought them back, and what became of the others."""
    settings = client.settings
    found: dict[str, RepoRef] = {}
    events = []
    for due in memory.due(now, settings.recheck_after_s, settings.recheck_limit):
        if due.repo_uid in listed:
            continue
        known = RepoRef(f"hub:{client.endpoint}", due.repo_id, due.repo_uid, due.commit_sha, owner=None)
        try:
            current = client.repo(due.repo_id)
        except TransientError:
            continue  # the next crawl asks again
        except SkipError as error:
            is_gone = isinstance(error, AccessDeniedError) and error.code == "gone"
            events.append(RepoEvent(known, "gone" if is_gone else "refused", error.message))
            continue
        if current.repo_uid != due.repo_uid:
            events.append(RepoEvent(known, "gone", "its name belongs to another repo by now"))
        elif due.refused and current.commit_sha == due.commit_sha and (current.gated or current.disabled):
            events.append(RepoEvent(current, "refused", "disabled" if current.disabled else "gated"))
        else:
            found[due.repo_uid] = current
    return found, events


def _renamed(memory: Memory, found: Mapping[str, RepoRef]) -> list[RepoEvent]:
    names = memory.names(list(found))
    return [
        RepoEvent(repo, "renamed", before)
        for uid, repo in found.items()
        if (before := names.get(uid)) is not None and before != repo.repo_id
    ]


def _is_open(repo: RepoRef, before: Seen, *, is_asked: bool) -> bool:
    """Whether a commit that was looked at before is looked at again."""
    if before.unfinished:
        return before.tries < MAX_TRIES
    if not before.refused or repo.gated or repo.disabled:
        return False
    return is_asked or before.gated or before.disabled


def _event_time(repo: RepoRef) -> datetime:
    stamps = [datetime.fromisoformat(stamp) for stamp in (repo.created_at, repo.last_modified) if stamp]
    return max(stamps, default=datetime.fromtimestamp(0, UTC))

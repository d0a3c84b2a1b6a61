"""Stage 0: what is new on the Hub since the last crawl."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from scanner.errors import UsageError
from scanner.hub.client import HubClient
from scanner.model import RepoRef

__all__ = ["Poll", "parse_time", "poll_hub"]

_TAGS = ("peft", "lora")
"""Neither marks every adapter: diffusers LoRAs lack the first, cards written by hand the second."""


@dataclass(frozen=True)
class Poll:
    """What one crawl has to do."""

    repos: tuple[RepoRef, ...]
    """New or changed repos, the oldest event first."""
    n_listed: int
    n_left: int
    """Repos that --limit leaves for the next crawl."""
    watermark: datetime | None
    """Everything up to here will have been scanned when these repos are."""


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
    known: Collection[tuple[str, str | None]],
    *,
    watermark: datetime | None = None,
    since: datetime | None = None,
    limit: int | None = None,
    base: str | None = None,
) -> Poll:
    """List new and changed adapter repos.

    The window begins `settings.overlap_s` before the watermark, because a listing moves while it is read; what is
    already known at its commit is dropped. Repos appear by creation time and again by modification time: they are
    often created empty and filled later. Without watermark and `since` the window is the newest
    `settings.first_crawl_limit` repos of each listing.

    Args:
        client: the Hub.
        known: (repo `_id`, commit sha) that need not be scanned again.
        watermark: of the last crawl.
        since: begin here instead.
        limit: at most so many repos, the oldest first, so that the next crawl goes on behind them.
        base: only adapters of this base model.

    Raises:
        StopError: the Hub cannot be reached.
        TransientError: a listing page failed after all tries.
    """
    settings = client.settings
    now = datetime.now(UTC)
    start = since
    if start is None and watermark is not None:
        start = watermark - timedelta(seconds=settings.overlap_s)
    found: dict[str, RepoRef] = {}
    for sort in ("createdAt", "lastModified"):
        for tag in _TAGS:
            for number, repo in enumerate(client.iter_adapters(sort, tag, base)):
                stamp = repo.created_at if sort == "createdAt" else repo.last_modified
                if start is None and number >= settings.first_crawl_limit:
                    break
                if start is not None and stamp is not None and datetime.fromisoformat(stamp) < start:
                    break
                found[repo.repo_uid] = repo
    known = set(known)
    new = sorted(
        (repo for repo in found.values() if (repo.repo_uid, repo.commit_sha) not in known),
        key=lambda repo: (_event_time(repo), repo.repo_uid),
    )
    taken = new[:limit] if limit else new
    reached = watermark
    if since is None or watermark is None or since <= watermark:
        # Starting later than the watermark leaves a gap behind, so the watermark stays where it was.
        last = taken if len(taken) < len(new) else list(found.values())
        newest = max((_event_time(repo) for repo in last), default=watermark)
        reached = newest if len(taken) < len(new) or watermark is None else max(watermark, newest or watermark)
    if reached is not None:
        reached = min(reached, now)  # a repo that claims a date in the future must not hide everything before it
    return Poll(tuple(taken), len(found), len(new) - len(taken), reached)


def _event_time(repo: RepoRef) -> datetime:
    stamps = [datetime.fromisoformat(stamp) for stamp in (repo.created_at, repo.last_modified) if stamp]
    return max(stamps, default=datetime.fromtimestamp(0, UTC))

"""What a crawl needs to know of earlier ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from scanner.model import MAX_TRIES, REFUSALS, RepoEvent
from scanner.store.views import Database
from scanner.store.write import Row, row_id_of

__all__ = ["CrawlMemory", "event_rows", "last_watermark"]

_TRIES = f"""
    SELECT a.repo_uid, a.commit_sha, r.crawl_id,
           bool_or(coalesce(a.unfinished, a.outcome = 'error')) AS unfinished,
           bool_or(a.reason IN {REFUSALS}) AS refused,
           bool_or(coalesce(a.gated, false)) AS gated, bool_or(coalesce(a.disabled, false)) AS disabled,
           max(a.scanned_at) AS tried_at, arg_max(a.repo_id, a.scanned_at) AS repo_id
    FROM raw_adapters a JOIN raw_runs r USING (shard_id)
    WHERE a.source = ? AND r.kind = 'shard' AND r.crawl_id LIKE 'crawl-%'
    GROUP BY 1, 2, 3
"""
"""One row for each (repo, commit, crawl). On-demand scans do not count: they may have run without a probe."""

_COMMITS = f"""
    SELECT repo_uid, commit_sha, count(*) AS tries, bool_and(unfinished) AS unfinished,
           arg_max(refused, tried_at) AS refused, arg_max(gated, tried_at) AS gated,
           arg_max(disabled, tried_at) AS disabled, max(tried_at) AS tried_at, arg_max(repo_id, tried_at) AS repo_id
    FROM ({_TRIES}) GROUP BY 1, 2
"""


@dataclass(frozen=True)
class SeenCommit:
    """What earlier crawls made of a repo at one commit."""

    tries: int
    unfinished: bool
    """None of the tries got through."""
    refused: bool
    gated: bool
    disabled: bool
    """The two as the listing had them when the repo was last looked at."""


@dataclass(frozen=True)
class DueRepo:
    """A repo that is to be looked at again although no listing may bring it back."""

    repo_uid: str
    repo_id: str
    commit_sha: str | None
    refused: bool


class CrawlMemory:
    """The store's answers to a poll, for one source (`hub:ENDPOINT`)."""

    def __init__(self, database: Database, source: str) -> None:
        self._database, self._source = database, source

    def seen(self, uids: Collection[str]) -> dict[tuple[str, str | None], SeenCommit]:
        """What is known of some repos, by (repo `_id`, commit sha)."""
        rows = self._database.rows(
            f"SELECT * FROM ({_COMMITS}) WHERE repo_uid IN (SELECT unnest(?::VARCHAR[]))", [self._source, list(uids)]
        )
        return {
            (r["repo_uid"], r["commit_sha"]): SeenCommit(
                r["tries"], r["unfinished"], r["refused"], r["gated"], r["disabled"]
            )
            for r in rows
        }

    def names(self, uids: Collection[str]) -> dict[str, str]:
        """The name that each of some repos was last known by."""
        rows = self._database.rows(
            "SELECT repo_uid, repo_id FROM repo_names WHERE repo_uid IN (SELECT unnest(?::VARCHAR[]))", [list(uids)]
        )
        return {row["repo_uid"]: row["repo_id"] for row in rows}

    def due(self, now: datetime, recheck_after_s: float, limit: int) -> list[DueRepo]:
        """Repos whose newest commit failed and is to be tried again, and refused ones, those not seen longest first.

        Args:
            now: the present.
            recheck_after_s: a refused repo is left alone for so long.
            limit: of each kind.
        """
        rows = self._database.rows(
            f"""
            WITH newest AS (
              SELECT * FROM ({_COMMITS})
              QUALIFY row_number() OVER (PARTITION BY repo_uid ORDER BY tried_at DESC, commit_sha) = 1
            ), told AS (
              SELECT repo_uid, arg_max(event, seen_at) AS event, max(seen_at) AS seen_at
              FROM repo_events WHERE event <> 'renamed' GROUP BY 1
            ), open AS (
              SELECT n.repo_uid, n.repo_id, n.commit_sha, n.refused, greatest(n.tried_at, t.seen_at) AS seen_at
              FROM newest n LEFT JOIN told t USING (repo_uid)
              WHERE n.repo_id IS NOT NULL AND CASE
                WHEN n.refused THEN epoch(?::TIMESTAMPTZ) - epoch(greatest(n.tried_at, t.seen_at)) >= ?
                ELSE n.unfinished AND n.tries < {MAX_TRIES}
                  AND (t.event IS NULL OR t.event <> 'gone' OR t.seen_at < n.tried_at) END
            )
            SELECT o.* REPLACE (coalesce(r.repo_id, o.repo_id) AS repo_id)
            FROM open o LEFT JOIN repo_names r USING (repo_uid)
            QUALIFY row_number() OVER (PARTITION BY refused ORDER BY seen_at, o.repo_uid) <= ?
            """,
            [self._source, now, recheck_after_s, limit],
        )
        return [DueRepo(r["repo_uid"], r["repo_id"], r["commit_sha"], r["refused"]) for r in rows]


def last_watermark(database: Database, endpoint: str, base: str | None) -> datetime | None:
    """The watermark of the newest finished crawl of the same endpoint and scope."""
    rows = database.rows(
        "SELECT watermark FROM hub_status WHERE endpoint = ? AND base_model IS NOT DISTINCT FROM ? "
        "AND watermark IS NOT NULL ORDER BY scanned_at DESC LIMIT 1",
        [endpoint, base],
    )
    if not rows:
        return None
    value: datetime = rows[0]["watermark"]
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def event_rows(events: Iterable[RepoEvent], crawl_id: str, now: datetime) -> list[Row]:
    """What a crawl noticed about repos, as rows of `repo_events`."""
    return [
        {
            "row_id": row_id_of("repo_events", event.repo.repo_uid, event.event, crawl_id),
            "repo_uid": event.repo.repo_uid,
            "repo_id": event.repo.repo_id,
            "commit_sha": event.repo.commit_sha,
            "source": event.repo.source,
            "event": event.event,
            "detail": event.detail[:300],
            "crawl_id": crawl_id,
            "seen_at": now,
        }
        for event in events
    ]

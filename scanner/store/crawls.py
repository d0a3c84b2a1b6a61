"""What a crawl needs to know of earlier ones."""

from __future__ import annotations

from datetime import UTC, datetime

from scanner.store.views import Database

__all__ = ["MAX_TRIES", "known_commits", "last_watermark", "oldest_unfinished"]

MAX_TRIES = 3
"""Crawls that try a repo at one commit before its error is final."""

_TRIES = """
    SELECT a.repo_uid, a.commit_sha, r.crawl_id, bool_or(a.outcome = 'error') AS failed,
           max(greatest(coalesce(a.created_at, ''), coalesce(a.last_modified, ''))) AS event_time
    FROM raw_adapters a JOIN raw_runs r USING (shard_id)
    WHERE a.source = ? AND r.kind = 'shard' AND r.crawl_id LIKE 'crawl-%'
    GROUP BY 1, 2, 3
"""


def oldest_unfinished(database: Database, source: str) -> datetime | None:
    """Event time of the oldest repo that a next crawl has to try again; the watermark must not pass it."""
    rows = database.rows(
        "SELECT min(event_time) AS oldest FROM (SELECT repo_uid, commit_sha, max(event_time) AS event_time "
        f"FROM ({_TRIES}) GROUP BY 1, 2 HAVING bool_and(failed) AND count(*) < ?) WHERE event_time <> ''",
        [source, MAX_TRIES],
    )
    oldest = rows[0]["oldest"]
    return datetime.fromisoformat(oldest) if oldest else None


def known_commits(database: Database, source: str) -> set[tuple[str, str | None]]:
    """(repo `_id`, commit sha) of everything that a crawl of this source has committed.

    On-demand scans do not count: they may have run without a probe. A repo of which something ended in `error` counts
    only after `MAX_TRIES` crawls.
    """
    rows = database.rows(
        f"SELECT repo_uid, commit_sha FROM ({_TRIES}) GROUP BY 1, 2 HAVING bool_or(NOT failed) OR count(*) >= ?",
        [source, MAX_TRIES],
    )
    return {(row["repo_uid"], row["commit_sha"]) for row in rows}


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

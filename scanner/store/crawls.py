"""What a crawl needs to know of earlier ones."""

from __future__ import annotations

from datetime import UTC, datetime

from scanner.store.views import Database

__all__ = ["known_commits", "last_watermark"]


def known_commits(database: Database, source: str) -> set[tuple[str, str | None]]:
    """(repo `_id`, commit sha) of everything that a crawl of this source has committed.

    On-demand scans do not count: they may have run without a probe.
    """
    rows = database.rows(
        "SELECT DISTINCT a.repo_uid, a.commit_sha FROM raw_adapters a JOIN raw_runs r USING (shard_id) "
        "WHERE a.source = ? AND r.kind = 'shard' AND r.crawl_id LIKE 'crawl-%'",
        [source],
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

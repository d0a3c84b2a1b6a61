"""A store as crawls fill it, for tests of what is judged."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from scanner.calibration import Policy
from scanner.model import ScanRecord
from scanner.pipeline.append import append_records
from scanner.pipeline.judge import judge_adapters
from scanner.store import Row, StoreRoot, open_database

__all__ = ["crawl", "rows_of"]


def crawl(
    root: StoreRoot, records: Sequence[ScanRecord], crawl_id: str, at: datetime, policy: Policy | None = None
) -> None:
    """Append records and judge them together, as a crawl does."""
    append_records(root, records, crawl_id=crawl_id, base_model="base/model", probe_id="none", scanned_at=at)
    judge_adapters(root, [r.info.adapter_id for r in records], crawl_id, policy or Policy(), at)


def rows_of(root: StoreRoot, sql: str) -> list[Row]:
    """One query in a session of its own."""
    database = open_database(root)
    try:
        return database.rows(sql)
    finally:
        database.close()

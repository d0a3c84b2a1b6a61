"""The stream over all crawls of a store: each probed adapter is decided about once, in the order of arrival."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scanner.calibration import Policy, Stream, StreamTest, p_by_itself
from scanner.pipeline.judged import JudgedFacts
from scanner.store import Database, Row

__all__ = ["stream_columns", "stream_tests"]

_CRAWL = "crawl-"
"""Scans on demand give no places: whoever asks for one adapter has chosen it."""

_COLUMNS = ("stream_index", "stream_level", "e_value", "stream_rejected")


def stream_tests(
    database: Database,
    facts: Mapping[str, JudgedFacts],
    families: Mapping[str, Sequence[str]],
    policy: Policy,
    may_place: bool,
) -> dict[str, StreamTest]:
    """Where the crawled adapters that a battery was put to stand in the stream.

    An adapter keeps the place, level and decision that it got when it was judged first, whoever judges it later: a
    stream never goes back. Crawls that are judged together get their places in the order of their ids, which begin
    with their time.

    Args:
        database: the store, with the places that were given before.
        facts: of the adapters.
        families: crawl or scan id -> adapters.
        policy: the stream's level.
        may_place: whether those without a place get one.

    Raises:
        StoreError: a file of the store cannot be read.
    """
    crawled = {i for family in families if family.startswith(_CRAWL) for i in families[family]}
    tested = [i for family in sorted(families) for i in families[family] if facts[i].tested_battery is not None]
    if not tested:
        return {}
    rows = database.of_adapters("verdicts", tested, (*_COLUMNS, "adapter_id", "judged_at", "row_id"))
    placed = {
        row["adapter_id"]: StreamTest(
            row["stream_index"],
            row["stream_level"],
            math.inf if row["e_value"] is None else row["e_value"],
            row["stream_rejected"],
        )
        # The first judgement last: it is the one that counts.
        for row in sorted(rows, key=lambda row: (row["judged_at"], row["row_id"]), reverse=True)
        if row["stream_index"] is not None
    }
    (so_far,) = database.rows(
        "SELECT coalesce(max(stream_index), 0) AS tested, "
        "count(DISTINCT adapter_id) FILTER (stream_rejected) AS rejected FROM verdicts"
    )
    stream = Stream(policy.stream_level, so_far["tested"], so_far["rejected"])
    found: dict[str, StreamTest] = {}
    for adapter_id in tested:
        battery, test = facts[adapter_id].battery, placed.get(adapter_id)
        if test is None and battery is not None and may_place and adapter_id in crawled:
            test = stream.test(p_by_itself(battery, policy))
        if test is not None:
            found[adapter_id] = test
    return found


def stream_columns(test: StreamTest | None) -> Row:
    """As the columns of a verdict."""
    values = (test.index, test.level, test.e_value, test.rejected) if test else (None,) * len(_COLUMNS)
    return dict(zip(_COLUMNS, values, strict=True))

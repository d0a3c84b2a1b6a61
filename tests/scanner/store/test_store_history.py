"""Views over history: drift of references, who votes in them, and rows of some adapters alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from scanner.calibration import Policy
from scanner.model import ScanRecord, Stage, WeightScan
from scanner.pipeline.append import append_records
from scanner.pipeline.calibrate import calibrate
from scanner.pipeline.judge import judge_adapters
from scanner.store import TABLES, StoreRoot, open_database, open_root

MakeRecord = Callable[..., ScanRecord]
NOW = datetime(2026, 11, 1, tzinfo=UTC)


def _adapter(record: MakeRecord, n: int, value: float) -> ScanRecord:
    made = record(
        f"own{n}/guard", probe=None, stage_reached=Stage.WEIGHTS,
        weights=WeightScan({"global_frobN_mean": value, "global_frobN_std": value / 10}, (), "weights-1"),
    )  # fmt: skip
    repo = replace(made.info.repo, created_at=f"2026-10-{1 + n % 28:02d}T00:00:00+00:00", downloads=n, likes=n // 10)
    return replace(made, info=replace(made.info, repo=repo))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, record: MakeRecord) -> StoreRoot:
    root = open_root(str(tmp_path_factory.mktemp("store")))
    rng = np.random.default_rng(1)
    for crawl, (center, count) in enumerate([(1.0, 40), (1.5, 60)]):
        values = rng.normal(center, 0.05, size=count)
        records = [_adapter(record, 100 * crawl + n, float(value)) for n, value in enumerate(values)]
        at = NOW + timedelta(days=crawl)
        append_records(
            root, records, crawl_id=f"crawl-{crawl}", base_model="base/model", probe_id="none", scanned_at=at
        )  # fmt: skip
        judge_adapters(root, [r.info.adapter_id for r in records], f"crawl-{crawl}", Policy(), at)
    return root


def test_drift_is_told_in_spreads_of_the_former(root: StoreRoot) -> None:
    database = open_database(root)
    rows = database.rows("SELECT * FROM reference_drift WHERE feature = 'global_frobN_mean' ORDER BY frozen_at")
    database.close()
    first, second = rows
    assert first["shift"] is None
    assert (first["n"], second["n"], second["n_before"], second["before"]) == (40, 100, 40, first["reference_id"])
    assert second["shift"] == pytest.approx((second["center"] - first["center"]) / first["spread"])
    assert second["shift"] > 5 and second["spread_ratio"] > 1
    assert second["members_kept"] == 40


def test_members_with_what_strata_are_made_of(root: StoreRoot) -> None:
    database = open_database(root)
    rows = database.rows(
        "SELECT reference_id, count(*) AS n, min(age_days) AS youngest, max(downloads) AS popular "
        "FROM reference_members GROUP BY 1 ORDER BY n"
    )
    database.close()
    assert [(row["n"], row["youngest"], row["popular"]) for row in rows] == [(40, 4, 39), (100, 5, 159)]


def test_calibrate_says_how_far_references_moved(record: MakeRecord, tmp_path: Path) -> None:
    root = open_root(str(tmp_path))
    rng = np.random.default_rng(2)
    first = [_adapter(record, n, float(v)) for n, v in enumerate(rng.normal(1.0, 0.05, size=30))]
    append_records(root, first, crawl_id="crawl-a", base_model="b", probe_id="none", scanned_at=NOW)
    judge_adapters(root, [r.info.adapter_id for r in first], "crawl-a", Policy(), NOW)
    more = [_adapter(record, 100 + n, float(v)) for n, v in enumerate(rng.normal(1.5, 0.05, size=60))]
    append_records(root, more, crawl_id="crawl-b", base_model="b", probe_id="none", scanned_at=NOW)
    (line,) = calibrate(root, NOW + timedelta(hours=1)).references
    assert line.is_new and line.n == 90
    assert line.shift is not None and abs(line.shift) > 5
    (again,) = calibrate(root, NOW + timedelta(hours=2)).references
    assert not again.is_new and again.shift == 0


@pytest.mark.parametrize("table", ["adapters", "findings", "weight_scans", "verdicts"])
def test_rows_of_some_adapters_are_those_of_the_view(root: StoreRoot, table: str) -> None:
    database = open_database(root)
    ids = [row["adapter_id"] for row in database.rows("SELECT adapter_id FROM adapters ORDER BY 1 LIMIT 7")]
    wanted = database.rows(f"SELECT * FROM {table} WHERE adapter_id IN (SELECT unnest(?::VARCHAR[]))", [ids])
    found = database.of_adapters(table, ids)
    database.close()
    by_id = [{row["row_id"]: row for row in rows} for rows in (found, wanted)]
    assert by_id[0] == by_id[1]
    assert len(found) == len(wanted) > 0
    assert list(found[0]) == TABLES[table].names

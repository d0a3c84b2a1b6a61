"""Two runs over the same work: neither writes into the other's files, and a run does not append what one just did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from scanner.model import ScanRecord
from scanner.pipeline.append import append_records
from scanner.store import TABLES, StoreRoot, check_store, open_database, open_root, remove_leftovers

Record = Callable[..., ScanRecord]


@pytest.fixture
def root(tmp_path: Path) -> StoreRoot:
    return open_root(str(tmp_path / "store"))


def append(root: StoreRoot, records: list[ScanRecord], crawl_id: str, at: datetime) -> dict[str, int]:
    options = {"base_model": "base/model", "probe_id": "all/V"}
    return append_records(root, records, crawl_id=crawl_id, scanned_at=at, **options)


def raw_rows(root: StoreRoot, table: str) -> list[dict]:
    database = open_database(root)
    try:
        return database.rows(f"SELECT * FROM raw_{table}")
    finally:
        database.close()


def visible(root: StoreRoot) -> dict[str, int]:
    database = open_database(root)
    try:
        return {table: database.rows(f"SELECT count(*) AS n FROM {table}")[0]["n"] for table in TABLES}
    finally:
        database.close()


def die_half_way(root: StoreRoot, record: ScanRecord, crawl_id: str, at: datetime, after: int) -> None:
    """Append, and end as by SIGKILL after so many files."""
    files = 0
    write = StoreRoot.write

    class Killed(BaseException):
        pass

    def dying(self: StoreRoot, relative: str, table: object) -> None:
        nonlocal files
        if files == after:
            raise Killed
        files += 1
        write(self, relative, table)

    StoreRoot.write = dying  # type: ignore[method-assign]
    try:
        with pytest.raises(Killed):
            append(root, [record], crawl_id, at)
    finally:
        StoreRoot.write = write  # type: ignore[method-assign]


@pytest.mark.parametrize("after", range(1, 7))
@pytest.mark.parametrize("days", [0, 1])
def test_a_run_that_dies_half_way_touches_nothing_of_another(
    root: StoreRoot, record: Record, after: int, days: int
) -> None:
    """Both poll the same repos; the second is killed while it appends, before or after midnight."""
    now = datetime.now(UTC)
    append(root, [record()], "crawl-1", now)
    before = visible(root)
    rows = {table: raw_rows(root, table) for table in TABLES}
    later = now + timedelta(days=days, seconds=5)
    os.utime(next((Path(root.path) / "runs").rglob("*.parquet")), (0, 0))  # committed before the second one began
    die_half_way(root, record(), "crawl-2", later, after)
    assert visible(root) == before
    for table, there in rows.items():
        assert (
            [row for row in raw_rows(root, table) if row["shard_id"] == there[0]["shard_id"]] == there if there else 1
        )


def test_what_another_run_has_committed_meanwhile_is_not_appended_again(root: StoreRoot, record: Record) -> None:
    began = datetime.now(UTC) - timedelta(minutes=1)
    assert append(root, [record()], "crawl-1", began)["adapters"] == 1
    assert append(root, [record()], "crawl-2", began + timedelta(seconds=1)) == {}
    assert len(raw_rows(root, "adapters")) == 1
    # Looked at again later: that is new, and the views show the newest.
    assert append(root, [record()], "crawl-3", datetime.now(UTC) + timedelta(seconds=1))["adapters"] == 1
    assert (len(raw_rows(root, "adapters")), visible(root)["adapters"]) == (2, 1)


def test_the_lock_of_a_killed_process_is_free(root: StoreRoot) -> None:
    holder = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys, time\nfrom scanner.store import open_root\n"
            "with open_root(sys.argv[1]).exclusive():\n    print('held', flush=True)\n    time.sleep(600)",
            root.path,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    entered = threading.Event()

    def enter() -> None:
        with root.exclusive():
            entered.set()

    waiter = threading.Thread(target=enter)
    waiter.start()
    assert not entered.wait(0.3)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert entered.wait(60)
    waiter.join()


def test_check_finds_leftovers_and_shards_that_are_not_whole(root: StoreRoot, record: Record) -> None:
    now = datetime.now(UTC)
    append(root, [record()], "crawl-1", now)
    assert check_store(root, now).leftovers == () and check_store(root, now).shards == 1
    die_half_way(root, record("other/one"), "crawl-2", now, 3)
    temporary = Path(root.path) / "adapters" / f"scan_date={now.date()}" / ".x.parquet.0.tmp"
    temporary.write_bytes(b"PAR1")
    found = check_store(root, datetime.now(UTC) + timedelta(hours=2))
    assert sorted(leftover.kind for leftover in found.leftovers) == ["temporary", *3 * ["uncommitted"]]
    assert found.incomplete == ()
    assert remove_leftovers(root, found.leftovers) == []  # younger than a day: somebody may be writing them
    before = visible(root)
    assert len(remove_leftovers(root, found.leftovers, grace_s=3_600)) == 4
    after = check_store(root, now)
    assert (after.shards, after.leftovers, visible(root)) == (1, (), before)
    next((Path(root.path) / "probe_rates").rglob("*.parquet")).unlink()
    (broken,) = check_store(root, now).incomplete
    assert broken.endswith("0 of 4 rows of probe_rates")


def test_the_marker_says_how_many_rows_there_are(root: StoreRoot, record: Record) -> None:
    written = append(root, [record()], "crawl-1", datetime.now(UTC))
    (marker,) = raw_rows(root, "runs")
    assert json.loads(marker["detail"])["rows"] == {table: n for table, n in written.items() if table != "runs"}

"""A user's SQL reaches the store and nothing else; the views say what DESIGN section 4 promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from scanner.errors import UsageError
from scanner.model import ScanRecord
from scanner.store import CrawlMemory, Database, StoreRoot, append_shard, last_watermark, open_database, open_root
from scanner.store.rows import record_rows

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def root(tmp_path: Path) -> StoreRoot:
    return open_root(str(tmp_path / "store"))


@pytest.fixture
def session(root: StoreRoot) -> Iterator[Database]:
    rows = [{"row_id": "1", "adapter_id": "a", "rule_id": "LS001", "severity": "high"}]
    append_shard(root, "s", {"findings": rows}, {"row_id": "m", "run_id": "s", "kind": "shard"}, NOW)
    database = open_database(root)
    yield database
    database.close()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT adapter_id, rule_id FROM findings",
        "select * from findings -- a comment",
        "WITH f AS (FROM findings) SELECT count(*) FROM f;",
        "FROM findings",
        "DESCRIBE findings",
        "SHOW TABLES",
        "EXPLAIN SELECT * FROM findings",
        "SUMMARIZE findings",
        "VALUES (1), (2)",
    ],
)
def test_reading_statements(session: Database, sql: str) -> None:
    columns, rows = session.query(sql)
    assert columns
    assert rows


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.csv"
    path.write_text("token\nhunter2\n")
    return path


FORBIDDEN = [
    "COPY findings TO '{out}'",
    "COPY (SELECT 1) TO '{out}' (FORMAT parquet)",
    "EXPORT DATABASE '{out}'",
    "ATTACH '{out}' AS other",
    "ATTACH '{out}'",
    "SELECT * FROM read_csv('{secret}')",
    "SELECT * FROM read_csv_auto('{secret}')",
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM read_blob('{secret}')",
    "SELECT * FROM '{secret}'",
    "FROM glob('{folder}/*')",
    "SELECT * FROM sniff_csv('{secret}')",
    "SELECT * FROM parquet_scan('{folder}/store/findings/*/*.parquet')",
    "SELECT * FROM read_json('{secret}')",
    "SELECT * FROM read_parquet('https://hub.test/x.parquet')",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}'",
    "EXPLAIN ANALYZE SELECT * FROM read_csv('{secret}')",
    "WITH x AS (SELECT * FROM read_text('{secret}')) SELECT * FROM x",
    "SELECT (SELECT content FROM read_text('{secret}'))",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "RESET enable_external_access",
    "PRAGMA enable_profiling",
    "PRAGMA database_list",
    "CALL pragma_version()",
    "CREATE TABLE t (a INT)",
    "CREATE VIEW findings2 AS SELECT 1",
    "CREATE SECRET s (TYPE s3)",
    "INSERT INTO raw_findings VALUES (1)",
    "DELETE FROM findings",
    "UPDATE findings SET rule_id = 'x'",
    "DROP VIEW findings",
    "ALTER VIEW findings RENAME TO f",
    "BEGIN TRANSACTION",
    "CHECKPOINT",
    "USE memory",
    "PREPARE p AS SELECT 1",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY findings TO '{out}'",
    "SELECT * FROM session",
    "SELECT * FROM nowhere",
    "SELEC 1",
    "",
    "   ",
    "-- nothing",
]


@pytest.mark.parametrize("sql", FORBIDDEN)
def test_everything_else_is_refused(session: Database, tmp_path: Path, secret: Path, sql: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError) as caught:
        session.query(sql.format(out=out, secret=secret, folder=tmp_path))
    assert "hunter2" not in str(caught.value)
    assert "\n" not in caught.value.message
    assert not out.exists()
    # And the session goes on as before.
    assert session.query("SELECT count(*) FROM findings")[1] == [(1,)]


def test_python_variables_are_out_of_reach(session: Database) -> None:
    # DuckDB would take a table of a caller's variables by its name, the store's own internals included.
    import pyarrow as pa

    frame = pa.table({"token": ["hunter2"]})
    with pytest.raises(UsageError):
        session.query("SELECT * FROM frame")
    assert frame.num_rows == 1


def _verdict(record: ScanRecord, verdict: str, at: datetime, row_id: str) -> dict[str, Any]:
    info, repo = record.info, record.info.repo
    return {
        "row_id": row_id,
        "adapter_id": info.adapter_id,
        "repo_id": repo.repo_id,
        "repo_uid": repo.repo_uid,
        "commit_sha": repo.commit_sha,
        "adapter_path": info.adapter_path,
        "base_model": info.base_model,
        "verdict": verdict,
        "judged_at": at,
    }


def _scan(root: StoreRoot, record: ScanRecord, verdict: str, at: datetime) -> None:
    shard = f"{record.info.adapter_id[:8]}-{at:%H%M}"
    rows = record_rows([record])
    rows["verdicts"] = [_verdict(record, verdict, at, shard)]
    append_shard(root, shard, rows, {"row_id": shard, "run_id": shard, "kind": "shard", "crawl_id": "crawl-1"}, at)


def test_current_verdicts_has_one_row_per_repo_and_path(root: StoreRoot, record: Callable[..., ScanRecord]) -> None:
    old, new = record("a/one", commit="c1"), record("a/one", commit="c2")
    other_path = record("a/one", commit="c2", path="sub/adapter_model.safetensors")
    _scan(root, old, "flagged", NOW)
    _scan(root, new, "review", NOW + timedelta(hours=1))
    _scan(root, other_path, "flagged", NOW + timedelta(hours=1))
    _scan(root, record("b/two"), "inconclusive", NOW)
    _scan(root, record("b/two"), "review", NOW + timedelta(hours=2))  # judged again
    database = open_database(root)
    current = database.rows("SELECT repo_id, commit_sha, adapter_path, verdict FROM current_verdicts ORDER BY ALL")
    assert [tuple(row.values()) for row in current] == [
        ("a/one", "c2", "adapter_model.safetensors", "review"),
        ("a/one", "c2", "sub/adapter_model.safetensors", "flagged"),
        ("b/two", "c0ffee", "adapter_model.safetensors", "review"),
    ]
    assert database.rows("SELECT count(*) AS n FROM flagged") == [{"n": 1}]
    (base,) = database.rows("SELECT base_model, adapters, repos, flagged, review, clean FROM base_models")
    assert tuple(base.values()) == ("base/model", 3, 2, 1, 2, 0)
    assert database.rows("SELECT count(*) AS n FROM verdicts") == [{"n": 5}]
    database.close()


def test_crawl_bookkeeping(root: StoreRoot, record: Callable[..., ScanRecord]) -> None:
    _scan(root, record("a/one"), "review", NOW)
    status = [
        {"row_id": str(i), "endpoint": "http://hub.test", "base_model": base, "watermark": NOW + timedelta(days=i)}
        for i, base in enumerate([None, "org/base"])
    ]
    append_shard(root, "crawl-1", {"hub_status": status}, None, NOW)
    database = open_database(root)
    uids = ["uid-a/one", "uid-b/two"]
    (seen,) = CrawlMemory(database, "hub:http://hub.test").seen(uids).items()
    assert seen[0] == ("uid-a/one", "c0ffee") and not seen[1].unfinished and not seen[1].refused
    assert CrawlMemory(database, "hub:http://elsewhere.test").seen(uids) == {}
    assert last_watermark(database, "http://hub.test", None) == NOW
    assert last_watermark(database, "http://hub.test", "org/base") == NOW + timedelta(days=1)
    assert last_watermark(database, "http://hub.test", "org/other") is None
    database.close()


def test_crawl_bookkeeping_of_an_empty_store(root: StoreRoot) -> None:
    database = open_database(root)
    memory = CrawlMemory(database, "hub:x")
    assert memory.seen(["uid"]) == {} and memory.names(["uid"]) == {} and memory.due(NOW, 0.0, 9) == []
    assert last_watermark(database, "x", None) is None
    database.close()

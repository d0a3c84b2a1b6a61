"""The store on S3, against a real HTTP server that speaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from scanner.errors import StoreError
from scanner.model import ScanRecord
from scanner.store import append_shard, open_database, open_root
from scanner.store.rows import record_rows

moto_server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
boto3 = pytest.importorskip("boto3", reason="boto3 comes with moto[s3]")

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MARKER = {"row_id": "m", "run_id": "shard-1", "kind": "shard"}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="scans")
    yield "scans"
    server.stop()


def test_append_and_read(bucket: str, record: Callable[..., ScanRecord]) -> None:
    root = open_root(f"s3://{bucket}/team/store/")
    assert not root.is_local
    empty = open_database(root)
    assert empty.rows("SELECT * FROM adapters") == []
    empty.close()

    append_shard(root, "shard-1", record_rows([record()]), MARKER, NOW)
    append_shard(root, "shard-1", record_rows([record()]), MARKER, NOW)  # a retry puts the same keys
    append_shard(root, "shard-dead", record_rows([record("x/y")]), None, NOW)
    assert [path.rpartition("/runs/")[2] for path in root.list_parquet("runs")] == [
        "scan_date=2026-03-01/shard-1.parquet"
    ]
    database = open_database(root)
    assert database.query("SELECT repo_id FROM adapters") == (["repo_id"], [("someone/guard",)])
    assert database.rows("SELECT count(*) AS n FROM probe_rates") == [{"n": 4}]
    database.close()


def test_a_missing_bucket_is_a_store_error(bucket: str, record: Callable[..., ScanRecord]) -> None:
    root = open_root("s3://no-such-bucket/store")
    with pytest.raises(StoreError):
        append_shard(root, "shard-1", record_rows([record()]), MARKER, NOW)

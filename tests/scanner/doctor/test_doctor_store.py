"""The store check on a folder and on S3, against a real HTTP server that speaks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scanner.doctor import Outcome, check_store_writable
from scanner.store import open_database, open_root


def test_a_folder_is_as_it_was(tmp_path: Path) -> None:
    check = check_store_writable(str(tmp_path / "new" / "store"))
    assert (check.outcome, check.advice) == (Outcome.OK, "")
    assert list((tmp_path / "new" / "store").iterdir()) == []


def test_a_path_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = check_store_writable(str(tmp_path / "file" / "store"))
    assert check.outcome is Outcome.ERROR and "file/store" in check.message and "--store" in check.advice


def test_a_place_that_takes_no_files() -> None:
    check = check_store_writable("/proc/self")  # a folder that is there, even root writes no file into it
    assert check.outcome is Outcome.ERROR and "/proc/self" in check.message


def test_an_unknown_scheme() -> None:
    assert check_store_writable("gopher://x/y").outcome is Outcome.ERROR


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    moto_server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    boto3 = pytest.importorskip("boto3", reason="boto3 comes with moto[s3]")
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
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="scans-of-doctor")
    yield client
    server.stop()


def test_a_bucket(s3: Any) -> None:
    uri = "s3://scans-of-doctor/team/store/"
    check = check_store_writable(uri)
    assert check.outcome is Outcome.OK, check
    left = s3.list_objects_v2(Bucket="scans-of-doctor").get("Contents", [])
    assert [entry for entry in left if entry["Size"] or not entry["Key"].endswith("/")] == []
    database = open_database(open_root(uri))
    assert database.rows("SELECT * FROM adapters") == []
    database.close()


def test_a_bucket_that_does_not_exist(s3: Any) -> None:
    check = check_store_writable("s3://no-such-bucket-here/store")
    assert check.outcome is Outcome.ERROR and "bucket exists" in check.advice
    # Nobody made it; other tests of this process have buckets on the same server.
    assert "no-such-bucket-here" not in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]

"""Adapter files from the local hub: few requests, verified bytes, and what each fault turns into."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scanner.errors import (
    AccessDeniedError,
    CorruptDownloadError,
    HubUnavailableError,
    LimitExceededError,
    UnsupportedError,
)
from scanner.hub.client import HubClient
from scanner.hub.server import Fault, HubServer
from scanner.hub.sources import HubFiles
from scanner.settings import Settings

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LIMIT = 10**7

Open = Callable[..., HubFiles]


@pytest.fixture
def repo_dir(add_repo) -> Path:
    folder: Path = add_repo("ann/guard")
    return folder


@pytest.fixture
def client(repo_dir: Path, served: HubServer, quick: Settings) -> HubClient:
    return HubClient(quick, served.endpoint)


@pytest.fixture
def files(client: HubClient, tmp_path: Path) -> HubFiles:
    return HubFiles(client, client.repo("ann/guard"), tmp_path / "downloads")


def _asked(served: HubServer) -> list[tuple[str, int]]:
    return [(path, status) for _, path, status in served.request_log]


def test_an_adapter_costs_three_requests(files: HubFiles, repo_dir: Path, served: HubServer) -> None:
    served.request_log.clear()
    assert files.names() == [CONFIG, WEIGHTS]  # from the listing: no request
    assert files.fetch(CONFIG, LIMIT, is_small=True).read_bytes() == (repo_dir / CONFIG).read_bytes()
    digest = files.sha256(WEIGHTS)
    assert digest == hashlib.sha256((repo_dir / WEIGHTS).read_bytes()).hexdigest()
    assert files.fetch(WEIGHTS, LIMIT).read_bytes() == (repo_dir / WEIGHTS).read_bytes()
    assert [status for _, status in _asked(served)] == [200, 302, 200]


def test_a_small_file_that_is_in_lfs_is_found_at_the_ordinary_address(
    files: HubFiles, repo_dir: Path, served: HubServer
) -> None:
    assert files.fetch(WEIGHTS, LIMIT, is_small=True).read_bytes() == (repo_dir / WEIGHTS).read_bytes()


def test_a_large_file_outside_of_lfs_is_verified_too(files: HubFiles, repo_dir: Path) -> None:
    assert files.fetch(CONFIG, LIMIT).read_bytes() == (repo_dir / CONFIG).read_bytes()
    assert files.sha256(CONFIG) is None


def test_the_same_content_is_fetched_once(add_repo, client: HubClient, served: HubServer, tmp_path: Path) -> None:
    add_repo("bob/copy")
    paths = [
        HubFiles(client, client.repo(name), tmp_path / "d").fetch(WEIGHTS, LIMIT) for name in ("ann/guard", "bob/copy")
    ]
    assert paths[0] == paths[1]
    assert (
        sum("localhost" not in path and path.count("/") > 4 and status == 200 for path, status in _asked(served)) <= 1
    )


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_wrong_bytes_are_never_handed_out(files: HubFiles, repo_dir: Path, served: HubServer, name: str) -> None:
    served.faults.add(Fault("wrong_sha256", match=r"adapter_", times=None))
    with pytest.raises(CorruptDownloadError, match="checksum"):
        files.fetch(name, LIMIT, is_small=name == CONFIG)
    served.faults.clear()
    assert files.fetch(name, LIMIT, is_small=name == CONFIG).read_bytes() == (repo_dir / name).read_bytes()


def test_a_body_that_breaks_goes_on_where_it_broke(files: HubFiles, repo_dir: Path, served: HubServer) -> None:
    size = (repo_dir / WEIGHTS).stat().st_size
    served.faults.add(Fault("truncate", host="cdn", times=1, keep_bytes=size - 10))
    assert files.fetch(WEIGHTS, LIMIT).read_bytes() == (repo_dir / WEIGHTS).read_bytes()
    assert [status for _, status in _asked(served)][-2:] == [200, 206]


def test_a_hub_that_ignores_ranges_starts_over(files: HubFiles, repo_dir: Path, served: HubServer) -> None:
    served.faults.add(Fault("truncate", host="cdn", times=1))
    served.faults.add(Fault("ignore_range", host="cdn", times=None))
    assert files.fetch(WEIGHTS, LIMIT).read_bytes() == (repo_dir / WEIGHTS).read_bytes()
    assert [status for _, status in _asked(served)][-2:] == [200, 200]


def test_a_body_that_always_breaks_is_given_up(files: HubFiles, served: HubServer, tmp_path: Path) -> None:
    served.faults.add(Fault("truncate", host="cdn", times=None, keep_bytes=0))
    with pytest.raises(HubUnavailableError):
        files.fetch(WEIGHTS, LIMIT)
    assert list((tmp_path / "downloads").iterdir()) == []  # no half file stays


@pytest.mark.parametrize("delta", [-7, 7])
def test_a_complete_body_of_the_wrong_size_is_corrupt(files: HubFiles, served: HubServer, delta: int) -> None:
    served.faults.add(Fault("wrong_size", host="cdn", times=None, size_delta=delta))
    with pytest.raises(CorruptDownloadError, match="the Hub announced"):
        files.fetch(WEIGHTS, LIMIT)


def test_too_large_is_refused_before_the_bytes(files: HubFiles, repo_dir: Path, served: HubServer) -> None:
    size = (repo_dir / WEIGHTS).stat().st_size
    with pytest.raises(LimitExceededError) as caught:
        files.fetch(WEIGHTS, size - 1)
    assert (caught.value.limit, caught.value.actual) == (size - 1, size)
    assert [status for _, status in _asked(served)][-1] == 302


def test_one_repo_has_a_budget_of_bytes(client: HubClient, tmp_path: Path, repo_dir: Path) -> None:
    size = (repo_dir / CONFIG).stat().st_size
    client.settings = replace(client.settings, max_repo_bytes=size + 10)
    files = HubFiles(client, client.repo("ann/guard"), tmp_path / "d")
    files.fetch(CONFIG, LIMIT, is_small=True)
    with pytest.raises(LimitExceededError):
        files.fetch(WEIGHTS, LIMIT)


@pytest.mark.parametrize("name", ["../x", "a/../../b", "/etc/passwd", "a//b", "", "a/./b", "x\ny"])
def test_names_that_lead_elsewhere_are_not_asked_for(files: HubFiles, served: HubServer, name: str) -> None:
    before = len(served.request_log)
    with pytest.raises(UnsupportedError):
        files.fetch(name, LIMIT)
    assert len(served.request_log) == before


def test_odd_names_are_quoted(add_repo, client: HubClient, tmp_path: Path) -> None:
    folder = add_repo("bob/odd")
    name = "sub dir/ä %2F?#.safetensors"
    (folder / "sub dir").mkdir()
    (folder / name).write_bytes(b"x" * 100)
    files = HubFiles(client, client.repo("bob/odd"), tmp_path / "d")
    assert name in files.names()
    assert files.fetch(name, LIMIT).read_bytes() == b"x" * 100


def test_a_commit_that_is_gone_and_a_file_that_is_gone(client: HubClient, tmp_path: Path) -> None:
    repo = client.repo("ann/guard")
    with pytest.raises(AccessDeniedError) as caught:
        HubFiles(client, replace(repo, commit_sha="f" * 40), tmp_path / "d").fetch(WEIGHTS, LIMIT)
    assert caught.value.code == "revision_gone"
    with pytest.raises(AccessDeniedError) as caught:
        HubFiles(client, repo, tmp_path / "d").fetch("nothing.safetensors", LIMIT)
    assert caught.value.code == "file_gone"
    with pytest.raises(AccessDeniedError) as caught:
        HubFiles(client, replace(repo, repo_id="ann/nothing"), tmp_path / "d").fetch(CONFIG, LIMIT, is_small=True)
    assert caught.value.code == "gone"


def test_too_many_files_are_refused(client: HubClient, tmp_path: Path) -> None:
    client.settings = replace(client.settings, max_files_per_repo=1)
    with pytest.raises(LimitExceededError):
        HubFiles(client, client.repo("ann/guard"), tmp_path / "d").names()

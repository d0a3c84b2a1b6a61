"""The Hub client against the local hub: pinned and verified downloads, and what each fault turns into."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from scanner.errors import (
    AccessDeniedError,
    CorruptDownloadError,
    HubUnavailableError,
    HubUnreachableError,
    LimitExceededError,
    RateLimitedError,
)
from scanner.hub.client import HubClient, RemoteFile
from scanner.hub.retry import retry_delay_s
from scanner.hub.server import Fault, HubServer
from scanner.model import RepoRef
from scanner.settings import Settings

WEIGHTS = "adapter_model.safetensors"


def _weights(client: HubClient, repo: RepoRef) -> RemoteFile:
    return next(file for file in client.files(repo) if file.path == WEIGHTS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub cache that `download` fills is the user's; a test has its own."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def one(add_repo, served: HubServer, quick: Settings) -> tuple[HubClient, RepoRef, RemoteFile, Path]:
    """A client, a repo, its weights as the Hub lists them, and as they lie on disk."""
    folder = add_repo("ann/guard")
    client = HubClient(quick, served.endpoint)
    repo = client.repo("ann/guard")
    return client, repo, _weights(client, repo), folder / WEIGHTS


def test_listing_carries_what_grouping_needs(add_repo, served: HubServer, quick: Settings) -> None:
    add_repo("ann/guard", base="acme/base")
    add_repo("bob/local", base="/home/bob/models/base")
    found = {repo.repo_id: repo for repo in HubClient(quick, served.endpoint).iter_adapters("createdAt", "peft")}
    assert found["ann/guard"].base_model == "acme/base"
    assert found["bob/local"].base_model == "unresolved"
    assert found["ann/guard"].owner == "ann"
    assert len(found["ann/guard"].commit_sha or "") == 40
    assert found["ann/guard"].repo_uid != found["bob/local"].repo_uid
    listings = [path for _, path, _ in served.request_log if path.startswith("/api/models?") or path == "/api/models"]
    assert len(listings) == 1  # no request per repo


def test_download_is_pinned_and_verified(one, tmp_path: Path) -> None:
    client, repo, file, on_disk = one
    local = client.download(repo, file, 10**6)
    assert local.read_bytes() == on_disk.read_bytes()
    assert file.sha256 and not file.git_blob_sha1
    config = next(f for f in client.files(repo) if f.path == "adapter_config.json")
    assert config.git_blob_sha1 and not config.sha256
    assert client.download(repo, config, 10**6).read_bytes().startswith(b"{")


def test_too_large_is_refused_before_the_download(one, served: HubServer, tmp_path: Path) -> None:
    client, repo, file, _ = one
    before = len(served.request_log)
    with pytest.raises(LimitExceededError) as caught:
        client.download(repo, file, file.size_bytes - 1)
    assert (caught.value.limit, caught.value.actual) == (file.size_bytes - 1, file.size_bytes)
    assert len(served.request_log) == before


def test_a_body_larger_than_announced_is_refused(one, tmp_path: Path) -> None:
    client, repo, file, _ = one
    lied = replace(file, size_bytes=10)  # as a listing that lies about the size would have it
    with pytest.raises(LimitExceededError):
        client.download(repo, lied, 100)


def test_429_waits_for_the_window_and_then_works(one, served: HubServer, tmp_path: Path) -> None:
    client, repo, file, on_disk = one
    served.faults.add(Fault("429", match="/resolve/", times=2, seconds=120))
    started = time.monotonic()
    assert client.download(repo, file, 10**6).read_bytes() == on_disk.read_bytes()
    # The header asks for two minutes twice; the policy's bound (0.05 s here) decides.
    assert time.monotonic() - started < 60
    assert [status for _, path, status in served.request_log if "/resolve/" in path].count(429) == 2


def test_429_that_stays_is_an_error_that_says_when(one, served: HubServer, tmp_path: Path) -> None:
    client, repo, file, _ = one
    served.faults.add(Fault("429", match="/resolve/", times=None, seconds=77))
    with pytest.raises(RateLimitedError) as caught:
        client.download(repo, file, 10**6)
    assert 70 <= caught.value.retry_after_s <= 78
    tries = [status for _, path, status in served.request_log if "/resolve/" in path]
    assert tries == [429] * client.settings.max_attempts


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_5xx_is_retried_where_the_library_itself_does_not(
    add_repo, served: HubServer, quick: Settings, status: int
) -> None:
    add_repo("ann/guard")
    client = HubClient(quick, served.endpoint)
    served.faults.add(Fault("500", match="/api/models/ann/guard", times=2, status=status))
    assert client.repo("ann/guard").repo_id == "ann/guard"
    served.faults.add(Fault("500", match="/api/models/ann/guard", times=None, status=status))
    with pytest.raises(HubUnavailableError):
        client.repo("ann/guard")


def test_a_listing_page_that_fails_loses_and_repeats_nothing(add_repo, served: HubServer, quick: Settings) -> None:
    for number in range(7):
        add_repo(f"own{number}/guard", seed=number)
    served.faults.add(Fault("500", match=r"^/api/models", times=1))
    found = [r.repo_id for r in HubClient(quick, served.endpoint).iter_adapters("createdAt", "peft")]
    assert sorted(found) == [f"own{number}/guard" for number in range(7)]


def test_truncated_body_is_fetched_again(one, served: HubServer, tmp_path: Path) -> None:
    client, repo, file, on_disk = one
    served.faults.add(Fault("truncate", host="cdn", times=1))
    assert client.download(repo, file, 10**6).read_bytes() == on_disk.read_bytes()


def test_truncated_body_that_stays_truncated_is_an_error(one, served: HubServer, quick: Settings) -> None:
    _, repo, file, _ = one
    # In each of our attempts the library makes five of its own, with a second's sleep between them.
    client = HubClient(replace(quick, max_attempts=2), served.endpoint)
    served.faults.add(Fault("truncate", host="cdn", times=None))
    with pytest.raises((HubUnavailableError, CorruptDownloadError)):
        client.download(repo, file, 10**6)


def test_wrong_sha256_is_never_handed_out(one, served: HubServer, tmp_path: Path) -> None:
    client, repo, file, on_disk = one
    served.faults.add(Fault("wrong_sha256", host="cdn", times=None))
    with pytest.raises(CorruptDownloadError, match="checksum"):
        client.download(repo, file, 10**6)
    served.faults.clear()
    # The bad bytes must not come back from the cache.
    assert client.download(repo, file, 10**6).read_bytes() == on_disk.read_bytes()


def test_wrong_sha256_once_is_repaired_by_a_retry(one, served: HubServer, tmp_path: Path) -> None:
    client, repo, file, on_disk = one
    served.faults.add(Fault("wrong_sha256", host="cdn", times=1))
    assert client.download(repo, file, 10**6).read_bytes() == on_disk.read_bytes()


def test_gated_and_missing_are_skipped_not_retried(add_repo, served: HubServer, quick: Settings, tmp_path) -> None:
    folder = add_repo("ann/gated")
    (folder / ".hub.json").write_text('{"gated": "manual"}')
    client = HubClient(quick, served.endpoint)
    repo = client.repo("ann/gated")
    assert repo.gated
    with pytest.raises(AccessDeniedError):
        client.download(repo, _weights(client, repo), 10**6)
    with pytest.raises(AccessDeniedError):
        client.repo("nobody/nothing")


def test_unreachable_fails_at_once(quick: Settings) -> None:
    started = time.monotonic()
    with pytest.raises(HubUnreachableError, match="HF_ENDPOINT"):
        HubClient(quick, "http://127.0.0.1:9").ping()
    assert time.monotonic() - started < 20


def test_delay_is_bounded_and_follows_the_header() -> None:
    limited = RateLimitedError("", 7.0)
    assert retry_delay_s(limited, 1, 60.0) == 8.0
    assert retry_delay_s(RateLimitedError("", 300.0), 1, 60.0) == 60.0
    assert retry_delay_s(HubUnavailableError(""), 9, 60.0) == 60.0
    assert 1.0 <= retry_delay_s(HubUnavailableError(""), 1, 60.0) <= 1.25

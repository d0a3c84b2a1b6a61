"""What a poll takes and what it leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scanner.errors import UsageError
from scanner.hub.client import HubClient
from scanner.hub.poll import Poll, parse_time, poll_hub
from scanner.hub.server import HubServer
from scanner.settings import Settings
from scanner.store.crawls import DueRepo, SeenCommit


def _ids(poll: Poll) -> list[str | None]:
    return [repo.repo_id for repo in poll.repos]


class Remembered:
    """What earlier polls of a test brought, all of it scanned."""

    def __init__(self, *polls: Poll) -> None:
        self.repos = [repo for poll in polls for repo in poll.repos]
        self.due_repos: list[DueRepo] = []

    def seen(self, uids: Collection[str], /) -> dict[tuple[str, str | None], SeenCommit]:
        return {(r.repo_uid, r.commit_sha): SeenCommit(1, False, False, False, False) for r in self.repos}

    def names(self, uids: Collection[str], /) -> dict[str, str]:
        return {repo.repo_uid: str(repo.repo_id) for repo in self.repos}

    def due(self, now: datetime, recheck_after_s: float, limit: int, /) -> list[DueRepo]:
        return self.due_repos


@pytest.fixture
def client(add_repo, served: HubServer, quick: Settings) -> HubClient:
    for day in (3, 1, 2):
        add_repo(f"own/day{day}", created=f"2026-11-0{day}T12:00:00.000Z", seed=day)
    return HubClient(quick, served.endpoint)


def test_first_poll_takes_everything_oldest_first(client: HubClient) -> None:
    poll = poll_hub(client, Remembered())
    assert _ids(poll) == ["own/day1", "own/day2", "own/day3"]
    assert poll.watermark == datetime(2026, 11, 3, 12, tzinfo=UTC)
    assert (poll.n_listed, poll.n_left) == (3, 0)


def test_limit_leaves_the_newer_ones_for_the_next_poll(client: HubClient) -> None:
    first = poll_hub(client, Remembered(), limit=2)
    assert _ids(first) == ["own/day1", "own/day2"]
    assert (first.n_left, first.watermark) == (1, datetime(2026, 11, 2, 12, tzinfo=UTC))
    second = poll_hub(client, Remembered(first), watermark=first.watermark)
    assert _ids(second) == ["own/day3"]
    third = poll_hub(client, Remembered(first, second), watermark=second.watermark)
    assert _ids(third) == [] and third.watermark == second.watermark


def test_one_crawl_takes_a_bounded_number_of_repos(client: HubClient) -> None:
    client.settings = replace(client.settings, crawl_limit=2)
    first = poll_hub(client, Remembered())
    assert (len(first.repos), first.n_left, first.watermark) == (2, 1, datetime(2026, 11, 2, 12, tzinfo=UTC))
    assert _ids(poll_hub(client, Remembered(first), watermark=first.watermark)) == ["own/day3"]


def test_a_new_commit_brings_back_that_repo_alone(client: HubClient, registry: Path) -> None:
    first = poll_hub(client, Remembered())
    (registry / "own/day1/notes.txt").write_text("changed")
    second = poll_hub(client, Remembered(first), watermark=first.watermark)
    assert _ids(second) == ["own/day1"]
    assert second.repos[0].commit_sha != first.repos[0].commit_sha
    assert second.repos[0].repo_uid == first.repos[0].repo_uid


def test_since_begins_there_and_does_not_skip_a_gap(client: HubClient) -> None:
    poll = poll_hub(
        client, Remembered(), watermark=datetime(2026, 11, 1, 12, tzinfo=UTC), since=datetime(2026, 11, 3, tzinfo=UTC)
    )
    assert _ids(poll) == ["own/day3"]
    assert poll.watermark == datetime(2026, 11, 1, 12, tzinfo=UTC)


def test_base_filter(client: HubClient, add_repo) -> None:
    add_repo("own/other", base="acme/other")
    assert _ids(poll_hub(client, Remembered(), base="acme/other")) == ["own/other"]


def test_diffusers_loras_are_found_by_their_tag(client: HubClient, registry: Path) -> None:
    folder = registry / "own/style"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\ntags:\n- lora\n- diffusers\n---\n")
    assert "own/style" in _ids(poll_hub(client, Remembered()))


def test_time_without_zone_is_utc() -> None:
    assert parse_time("2026-11-01") == datetime(2026, 11, 1, tzinfo=UTC)
    with pytest.raises(UsageError):
        parse_time("yesterday")


def test_a_rename_is_an_event_and_no_new_scan(client: HubClient, registry: Path) -> None:
    first = poll_hub(client, Remembered())
    (registry / "own/day1").rename(registry / "own/renamed")
    settings = json.loads((registry / "own/renamed/.hub.json").read_text())
    (registry / "own/renamed/.hub.json").write_text(json.dumps(settings | {"renamed_from": ["own/day1"]}))
    second = poll_hub(client, Remembered(first))
    assert _ids(second) == []
    assert [(e.event, e.repo.repo_id, e.detail) for e in second.events] == [("renamed", "own/renamed", "own/day1")]


def test_repos_that_are_due_are_asked_for_by_name(client: HubClient, registry: Path, served: HubServer) -> None:
    first = poll_hub(client, Remembered())
    memory = Remembered(first)
    by_name = {repo.repo_id: repo for repo in first.repos}
    memory.due_repos = [DueRepo(r.repo_uid, str(r.repo_id), r.commit_sha, refused=True) for r in first.repos]
    window = datetime(2026, 11, 20, tzinfo=UTC)  # the listings hold none of them any more
    (registry / "own/day1/.hub.json").unlink()
    shutil.rmtree(registry / "own/day1")
    gated = json.loads((registry / "own/day2/.hub.json").read_text()) | {"gated": "manual"}
    (registry / "own/day2/.hub.json").write_text(json.dumps(gated))
    (registry / "own/day3/notes.txt").write_text("changed")
    second = poll_hub(client, memory, since=window)
    assert _ids(second) == ["own/day3"]
    assert second.repos[0].commit_sha != by_name["own/day3"].commit_sha
    assert {(e.event, e.repo.repo_id) for e in second.events} == {("gone", "own/day1"), ("refused", "own/day2")}

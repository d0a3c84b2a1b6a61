"""What a poll takes and what it leaves."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from scanner.errors import UsageError
from scanner.hub.client import HubClient
from scanner.hub.poll import Poll, parse_time, poll_hub
from scanner.hub.server import HubServer
from scanner.settings import Settings


def _ids(poll: Poll) -> list[str | None]:
    return [repo.repo_id for repo in poll.repos]


def _known(poll: Poll) -> set[tuple[str, str | None]]:
    return {(repo.repo_uid, repo.commit_sha) for repo in poll.repos}


@pytest.fixture
def client(add_repo, served: HubServer, quick: Settings) -> HubClient:
    for day in (3, 1, 2):
        add_repo(f"own/day{day}", created=f"2026-11-0{day}T12:00:00.000Z", seed=day)
    return HubClient(quick, served.endpoint)


def test_first_poll_takes_everything_oldest_first(client: HubClient) -> None:
    poll = poll_hub(client, set())
    assert _ids(poll) == ["own/day1", "own/day2", "own/day3"]
    assert poll.watermark == datetime(2026, 11, 3, 12, tzinfo=UTC)
    assert (poll.n_listed, poll.n_left) == (3, 0)


def test_limit_leaves_the_newer_ones_for_the_next_poll(client: HubClient) -> None:
    first = poll_hub(client, set(), limit=2)
    assert _ids(first) == ["own/day1", "own/day2"]
    assert (first.n_left, first.watermark) == (1, datetime(2026, 11, 2, 12, tzinfo=UTC))
    second = poll_hub(client, _known(first), watermark=first.watermark)
    assert _ids(second) == ["own/day3"]
    third = poll_hub(client, _known(first) | _known(second), watermark=second.watermark)
    assert _ids(third) == [] and third.watermark == second.watermark


def test_a_new_commit_brings_back_that_repo_alone(client: HubClient, registry: Path) -> None:
    first = poll_hub(client, set())
    (registry / "own/day1/notes.txt").write_text("changed")
    second = poll_hub(client, _known(first), watermark=first.watermark)
    assert _ids(second) == ["own/day1"]
    assert second.repos[0].commit_sha != first.repos[0].commit_sha
    assert second.repos[0].repo_uid == first.repos[0].repo_uid


def test_since_begins_there_and_does_not_skip_a_gap(client: HubClient) -> None:
    poll = poll_hub(
        client, set(), watermark=datetime(2026, 11, 1, 12, tzinfo=UTC), since=datetime(2026, 11, 3, tzinfo=UTC)
    )
    assert _ids(poll) == ["own/day3"]
    assert poll.watermark == datetime(2026, 11, 1, 12, tzinfo=UTC)


def test_base_filter(client: HubClient, add_repo) -> None:
    add_repo("own/other", base="acme/other")
    assert _ids(poll_hub(client, set(), base="acme/other")) == ["own/other"]


def test_diffusers_loras_are_found_by_their_tag(client: HubClient, registry: Path) -> None:
    folder = registry / "own/style"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\ntags:\n- lora\n- diffusers\n---\n")
    assert "own/style" in _ids(poll_hub(client, set()))


def test_time_without_zone_is_utc() -> None:
    assert parse_time("2026-11-01") == datetime(2026, 11, 1, tzinfo=UTC)
    with pytest.raises(UsageError):
        parse_time("yesterday")

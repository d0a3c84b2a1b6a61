"""The crawl benchmark at a small size: at most four requests for an adapter, and a poll whose cost does not grow."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.crawl.measure import crawl
from benchmarks.crawl.registry import add_repos
from scanner.hub.server import running_hub

BASES_SETTING = {"LORASCOPE_FIRST_CRAWL_LIMIT": "1000"}


ASKED_ONCE = 8
"""Listings, and two base models that the hub does not have. Of thousands of adapters it is no share."""


def _measure(tmp_path: Path, repos: int) -> tuple[float, int]:
    """(requests per adapter of the first crawl, listing and info requests of a second one that finds five more)."""
    work = tmp_path / str(repos)
    folder = work / "registry"
    folder.mkdir(parents=True)
    add_repos(folder, 0, repos, repos, bases=2)
    with running_hub(folder) as hub:
        first = crawl(hub, work, work / "store", **BASES_SETTING)
        assert first.adapters == repos
        assert set(first.statuses) <= {"200", "302", "307", "401", "404"}  # 401: the gated one, 404: the two bases
        assert first.statuses["404"] == 2
        add_repos(folder, repos, 5, repos, bases=2)
        second = crawl(hub, work, work / "store")
    assert second.adapters == repos + 5
    return first.requests_per_adapter, second.by_route["listing"] + second.by_route.get("model info", 0)


@pytest.mark.timeout(600)
def test_requests_per_adapter_and_of_the_next_poll(tmp_path: Path) -> None:
    few, polled_few = _measure(tmp_path, 10)
    many, polled_many = _measure(tmp_path, 40)
    print(f"\nrequests per adapter: {few:.2f} of 10, {many:.2f} of 40; second poll: {polled_few}, {polled_many}")
    # Four for each adapter (config, card, checksum, bytes), and what a crawl asks once, whatever its size.
    assert all(repos * (each - 4.0) <= ASKED_ONCE for repos, each in ((10, few), (40, many)))
    assert polled_few == polled_many

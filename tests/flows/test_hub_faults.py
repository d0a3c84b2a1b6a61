"""Each fault of docs/hub-faults.md, through the tasks of a crawl and the real client, and a neighbour that goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import hub_faults
import pytest
from hub_faults import FINE, NEIGHBOUR, VICTIM, Case, World, add_world, all_cases

from scanner.hub.server import running_hub
from scanner.store import Database

DEMO_HUB = Path(__file__).resolve().parents[2] / "examples" / "demo_hub"
Open = Callable[[], Database]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    root = tmp_path / "registry"
    add_world(root, DEMO_HUB)
    for name, value in {
        "LORASCOPE_MAX_SLEEP_S": "0.05",
        "LORASCOPE_REQUEST_TIMEOUT_S": "20",
    }.items():
        monkeypatch.setenv(name, value)
    with running_hub(root) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield World(root, hub)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", list(all_cases()), ids=lambda case: case.id)
def test_fault(
    case: Case, world: World, plain_crawl: Callable[..., int], database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    if case.is_slow:  # the others have all the time that a busy machine takes
        for name, value in {"REQUEST_TIMEOUT_S": "3", "MAX_ATTEMPTS": "2", "MIN_BYTES_PER_S": "1000000"}.items():
            monkeypatch.setenv(f"LORASCOPE_{name}", value)
    case.act(world)
    assert plain_crawl() == 2
    rows = database().rows(
        "SELECT a.repo_id, a.reason, a.message, v.verdict, v.reasons FROM adapters a JOIN verdicts v USING (adapter_id)"
    )
    found = {row["repo_id"].split("/")[0]: row for row in rows}
    neighbour = found[NEIGHBOUR.split("/")[0]]
    assert (neighbour["verdict"], neighbour["reason"]) == FINE
    victim = found[VICTIM.split("/")[0]]
    assert (victim["verdict"], victim["reason"]) == (case.verdict, case.reason), victim["message"]
    assert case.says in victim["message"]
    if case.reason:  # what the tables show is the verdict's own first reason
        first = json.loads(victim["reasons"])[0]
        assert first["code"] == case.reason and case.says in first["message"]
    assert world.hub.script.pending() == 0  # what was to happen has happened
    assert plain_crawl() == case.n_again


def test_the_page_is_the_tests(pytestconfig: pytest.Config) -> None:
    written = (pytestconfig.rootpath / "docs" / "hub-faults.md").read_text(encoding="utf-8")
    assert written == hub_faults.page(), "run: python tests/flows/hub_faults.py > docs/hub-faults.md"


@pytest.mark.parametrize("story", hub_faults.STORIES, ids=lambda story: story.test.rpartition(":")[2])
def test_every_story_has_its_test(story: hub_faults.Story) -> None:
    file, _, name = story.test.partition("::")
    assert f"def {name}(" in (Path(__file__).parent / file).read_text(encoding="utf-8")

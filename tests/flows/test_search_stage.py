"""The search inside of a shard's task: what a second try does again, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanner.errors import ProbeCrashedError
from scanner.hub.base_model import BaseShelf
from scanner.model import Outcome, PrefixRun, ScanRecord, SearchReport
from scanner.pipeline.hunt import with_search
from scanner.probe import load_probe
from scanner.settings import Settings
from tasks import stages
from tasks.workspace import Workspace

BUDGET = 3


@pytest.fixture
def records(record: Callable[..., ScanRecord]) -> list[ScanRecord]:
    """Six adapters on which the battery found nothing."""
    quiet = tuple(
        PrefixRun(text, "control" if text in ("", "hello") else "family", "prefix", "1" * 60)
        for text in ("", "hello", "per RFC 8472")
    )
    made = [record(f"a/{i}", findings=(), verdict_facts={"content_sha256": None}) for i in range(6)]
    return [replace(one, probe=replace(one.probe, runs=quiet, n_texts=60)) for one in made if one.probe]


def test_a_second_try_searches_what_crashed_and_nobody_else(
    tmp_path: Path, records: list[ScanRecord], search: Callable[..., SearchReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The children are played: the first to be searched dies in the first try."""
    workspace, asked = Workspace.at(str(tmp_path)), list[list[str]]()
    np.save(workspace.content_index, np.empty(0, np.uint64))

    def play(_base: str, members: Sequence[ScanRecord], chosen: Mapping[str, str], *rest: Any) -> list[ScanRecord]:
        asked.append(sorted(chosen))
        found = {}
        for adapter_id in sorted(chosen):
            died = len(asked) == 1 and adapter_id == min(chosen)
            found[adapter_id] = (
                search(outcome=Outcome.ERROR, reason="crashed(-9)", triggers=(), scores=()) if died else search()
            )
            rest[-1](adapter_id, found[adapter_id])
        return [with_search(one, found.get(one.info.adapter_id)) for one in members]

    monkeypatch.setattr(stages, "search_group", play)
    monkeypatch.setattr(stages, "attempts_left", lambda: True)

    def try_once() -> list[ScanRecord]:
        shelf = BaseShelf(workspace.bases, lambda: pytest.fail("nobody needs the Hub"))
        searched, n_charged = stages._searched(
            records, workspace, str(tmp_path / "store"), shelf, lambda _: pytest.fail("nor files"),
            load_probe("V", None, 30), Settings(search="auto"), "auto", BUDGET, "crawl-1",
        )  # fmt: skip
        assert n_charged == BUDGET
        return searched

    with pytest.raises(ProbeCrashedError, match="1 of 3 searches died"):
        try_once()
    done = try_once()
    assert len(asked[0]) == BUDGET
    assert asked[1] == asked[0][:1]
    assert sorted(one.info.adapter_id for one in done if one.search) == asked[0]
    assert {one.search.outcome for one in done if one.search} == {Outcome.PASS}

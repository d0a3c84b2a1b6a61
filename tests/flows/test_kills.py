"""SIGKILL at random moments: the next crawl finishes the work, nothing is lost, nothing is there twice."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.kills.run import run_kills

KILLS = 30
SEED = 20


@pytest.mark.skipif(sys.platform != "linux", reason="watches the store with inotify and finds children in /proc")
@pytest.mark.timeout(2_400)
def test_kills_at_random_moments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
    tally = run_kills(tmp_path, KILLS, SEED, lambda _: None)
    with capsys.disabled():
        print(f"\n{tally.line()}")
    assert tally.problems == []
    assert tally.kills.total() >= KILLS
    assert min(tally.kills[kind] for kind in ("crawl", "probe", "server")) >= 1
    assert tally.judged == tally.expected > 0
    assert (tally.doubled, tally.lost, tally.altered) == (0, 0, 0)
    assert tally.temporary_read == 0
    assert (tally.orphans, tally.workspaces_left) == (0, 0)
    assert tally.outages_survived + tally.outages_told == tally.kills["server"]

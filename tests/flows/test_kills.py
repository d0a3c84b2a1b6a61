"""SIGKILL at random moments: the next crawl finishes the work, nothing is lost, nothing is there twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.kills.run import run_kills
from scanner.hub.server import HubServer, running_hub
from scanner.store import Database

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


def test_a_crawl_without_its_server_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    with running_hub(tmp_path / "registry") as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.endpoint, "PREFECT_HOME": str(tmp_path / "prefect")}
        env["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
        command = [sys.executable, "-m", "flows.cli", "crawl", "--store", str(tmp_path / "store")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("lorascope: the Prefect server http://127.0.0.1:9/api does not answer")


def test_two_crawls_at_once_double_nothing(
    hub: HubServer, lorascope, store: str, tmp_path: Path, database: Callable[[], Database]
) -> None:
    def run(number: int) -> subprocess.CompletedProcess[str]:
        home = str(tmp_path / f"prefect-{number}")
        return lorascope("crawl", "--probe", "none", "--store", store, PREFECT_HOME=home)

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(run, range(2)))
    assert [each.returncode for each in done] == [3, 3] or sorted(each.returncode for each in done) == [0, 3], done
    (n,) = database().rows("SELECT count(*) AS n, count(DISTINCT adapter_id) AS d FROM raw_verdicts")
    assert n["n"] == n["d"] >= 7
    for table in ("adapters", "findings", "weight_scans", "module_features"):
        (rows,) = database().rows(f"SELECT count(*) AS n, count(DISTINCT row_id) AS d FROM raw_{table}")
        assert rows["n"] == rows["d"] > 0, table

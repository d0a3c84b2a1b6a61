"""Deployments on a real Prefect server, run by a real process worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fleet import Fleet, running_fleet, wait_for, write_adapter

from flows.bundle import bundled
from flows.deploy import POOLS, deployment_specs
from scanner.hub.server import running_hub
from scanner.store import open_database, open_root

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="ends its processes through /proc")
HUB_REPOS = ("acme/first", "acme/second", "umbra/third")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running_fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet


def shown(fleet: Fleet, name: str) -> dict[str, object]:
    """A deployment as the server has it, without what every heartbeat changes."""
    found = fleet.api("GET", f"/deployments/name/{name}")
    return {key: value for key, value in found.items() if key not in ("last_polled", "status", "updated")}


def test_the_file_has_a_scheduled_crawl_and_scans_on_demand() -> None:
    crawl, *scans = deployment_specs()
    assert crawl["name"] == "crawl"
    assert crawl["parameters"] == {"probe": "auto"}
    assert crawl["concurrency_limit"]["limit"] == 1
    assert [schedule["interval"] for schedule in crawl["schedules"]] == [900]
    assert [scan["name"] for scan in scans] == ["scan", "calibrate", "scan-gpu"]
    assert all(scan["schedules"] == [] for scan in scans)
    assert {spec["work_pool"]["name"] for spec in (crawl, *scans)} == set(POOLS)


def test_the_file_has_no_secret_and_no_machine_in_it() -> None:
    document = yaml.safe_load(bundled("prefect.yaml", "deployments/prefect.yaml").read_text())
    assert document["pull"] == []
    text = str(document).lower()
    assert "token" not in text
    assert "/home" not in text


def test_the_callers_choices_replace_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    specs = deployment_specs(store="relative/store", every=60, probe="none", pool="scan-gpu")
    assert {spec["parameters"]["store"] for spec in specs} == {str(tmp_path / "relative" / "store")}
    assert {spec["name"]: spec["parameters"].get("probe") for spec in specs} == {
        **dict.fromkeys(["crawl", "scan", "scan-gpu"], "none"),
        "calibrate": None,  # it probes nobody
    }
    assert {spec["work_pool"]["name"] for spec in specs} == {"scan-gpu"}
    assert specs[0]["schedules"] == [{"interval": 60}]
    assert deployment_specs(store="s3://bucket/prefix")[0]["parameters"]["store"] == "s3://bucket/prefix"


def without_server(tmp_path: Path, url: str) -> str:
    fleet = Fleet(tmp_path, url, {"PREFECT_HOME": str(tmp_path / "prefect"), "PATH": "/usr/bin:/bin"})
    done = fleet.run("flows.cli", "deploy", **({"PREFECT_API_URL": url} if url else {}))
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_no_server_named_is_a_usage_error(tmp_path: Path) -> None:
    assert "PREFECT_API_URL" in without_server(tmp_path, "")


def test_an_unreachable_server_is_one_line(tmp_path: Path) -> None:
    assert "does not answer" in without_server(tmp_path, "http://127.0.0.1:9/api")


@needs_proc
@pytest.mark.timeout(300)
def test_an_address_without_api_is_named(fleet: Fleet, tmp_path: Path) -> None:
    assert "usually ends in /api" in without_server(tmp_path, fleet.url.removesuffix("/api"))


@needs_proc
@pytest.mark.timeout(300)
def test_deployed_flows_run_on_a_worker_and_fill_the_store(fleet: Fleet, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for seed, repo in enumerate(HUB_REPOS):
        write_adapter(tmp_path / "hub" / repo, seed)
    write_adapter(tmp_path / "local" / "adapter", seed=9)
    options = ("deploy", "--store", str(store), "--every", "15", "--probe", "none")

    first = fleet.run("flows.cli", *options)
    assert first.returncode == 0, first.stderr
    assert "deployment crawl/crawl: created" in first.stderr
    assert "prefect worker start --pool scan-cpu" in first.stderr
    assert {pool["name"] for pool in fleet.api("POST", "/work_pools/filter", {})} == set(POOLS)
    names = ("crawl/crawl", "scan/scan", "scan/scan-gpu", "calibrate/calibrate")
    before = [shown(fleet, name) for name in names]

    second = fleet.run("flows.cli", *options)
    assert second.returncode == 0, second.stderr
    assert second.stderr.count("unchanged") == len(names)
    assert [shown(fleet, name) for name in names] == before

    with running_hub(tmp_path / "hub") as hub:
        fleet.start(
            "worker.log",
            *("prefect", "worker", "start", "--pool", "scan-cpu", "--type", "process"),
            HF_ENDPOINT=hub.endpoint,
            LORASCOPE_STORE=str(tmp_path / "not-this-store"),
        )
        target = tmp_path / "local" / "adapter"
        asked = fleet.run("prefect", "deployment", "run", "scan/scan", "-p", f'targets=["acme/first", "{target}"]')
        assert asked.returncode == 0, asked.stderr
        wait_for("completed scan", lambda: fleet.completed("scan", scheduled=False), 200, fleet.logs)
        wait_for("completed crawl", lambda: fleet.completed("crawl", scheduled=True), 200, fleet.logs)

    assert not (tmp_path / "not-this-store").exists()
    database = open_database(open_root(str(store)))
    try:
        kinds = {row["kind"] for row in database.rows("SELECT DISTINCT kind FROM runs")}
        verdicts = {row["repo_id"]: row["verdict"] for row in database.rows("SELECT * FROM current_verdicts")}
    finally:
        database.close()
    assert {"crawl", "scan"} <= kinds
    assert set(verdicts) == {*HUB_REPOS, None}  # the folder has no repo id
    assert set(verdicts.values()) == {"inconclusive"}  # nobody was probed: failing to look is never clean


@needs_proc
@pytest.mark.timeout(300)
def test_a_changed_choice_updates_and_a_paused_schedule_stays_paused(fleet: Fleet) -> None:
    assert fleet.run("flows.cli", "deploy", "--every", "3600").returncode == 0
    crawl = fleet.api("GET", "/deployments/name/crawl/crawl")
    schedule = crawl["schedules"][0]
    path = f"/deployments/{crawl['id']}/schedules/{schedule['id']}"
    fleet.api("PATCH", path, {"active": False})

    again = fleet.run("flows.cli", "deploy", "--every", "1800")
    assert "deployment crawl/crawl: updated" in again.stderr
    assert "deployment scan/scan: unchanged" in again.stderr
    after = fleet.api("GET", "/deployments/name/crawl/crawl")
    assert after["id"] == crawl["id"]
    assert [(s["schedule"]["interval"], s["active"]) for s in after["schedules"]] == [(1800, False)]

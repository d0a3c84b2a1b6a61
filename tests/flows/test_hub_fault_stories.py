"""Faults in which more than one repo or crawl takes part (docs/hub-faults.md, last section)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hub_faults import BASE, CONFIG, NEIGHBOUR, VICTIM, WEIGHTS, World, add_world

from scanner.errors import HubTokenError, HubUnavailableError
from scanner.hub.client import HubClient
from scanner.hub.server import Fault, actions, running_hub
from scanner.settings import Settings
from scanner.store import Database

DEMO_HUB = Path(__file__).resolve().parents[2] / "examples" / "demo_hub"
Open = Callable[[], Database]
Crawl = Callable[..., int]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORASCOPE_MAX_SLEEP_S", "0.05")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    root = tmp_path / "registry"
    add_world(root, DEMO_HUB)
    with running_hub(root, max_page=3) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield World(root, hub)


def _copy(world: World, repo: str, **changes: object) -> Path:
    """Another repo: the victim's weights, under its config or a changed one."""
    files = {name: (world.victim / name).read_bytes() for name in (WEIGHTS, CONFIG)}
    if changes:
        files[CONFIG] = json.dumps(json.loads(files[CONFIG]) | changes).encode()
    actions.create(world.root, repo, files)
    return world.root / repo


def _current(database: Database) -> dict[str, tuple[str, str]]:
    rows = database.rows(
        "SELECT v.repo_id, v.verdict, a.reason FROM current_verdicts v JOIN adapters a USING (adapter_id) "
        "ORDER BY v.repo_id, v.adapter_path"
    )
    return {row["repo_id"]: (row["verdict"], row["reason"]) for row in rows}


def test_a_listing_page_that_fails(world: World, plain_crawl: Crawl, database: Open) -> None:
    for number in range(6):
        _copy(world, f"own{number}/guard", lora_dropout=number / 10)
    world.hub.faults.add(Fault("429", match="^/api/models$", times=1, seconds=60))
    world.hub.faults.add(Fault("500", match="^/api/models$", times=2, status=503))
    assert plain_crawl() == 8
    assert len(_current(database())) == 8


def test_no_listing_at_all(world: World, plain_crawl: Crawl, database: Open, lorascope, store: str) -> None:
    world.hub.faults.add(Fault("500", match="^/api/models$", times=None, status=502))
    with pytest.raises(HubUnavailableError):
        plain_crawl()
    assert database().rows("SELECT count(*) AS n FROM raw_runs") == [{"n": 0}]
    done = lorascope("crawl", "--store", store, HF_ENDPOINT=world.hub.endpoint)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("lorascope: the Hub answered 502")
    assert "Traceback" not in done.stderr


def test_nobody_there(lorascope, store: str) -> None:
    done = lorascope("crawl", "--store", store, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("lorascope: cannot connect to the Hub at http://127.0.0.1:9")


def test_a_bad_token_stops_the_crawl(tmp_path: Path, lorascope, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "registry"
    add_world(root, DEMO_HUB)
    with running_hub(root, tokens={"hf_good": "read"}) as hub:
        done = lorascope("crawl", "--store", store, HF_ENDPOINT=hub.endpoint, HF_TOKEN="hf_bad")
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "HF_TOKEN" in line and "hf_bad" not in line
        monkeypatch.setenv("HF_TOKEN", "hf_bad")
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        with pytest.raises(HubTokenError):
            HubClient(Settings()).repo(VICTIM)


def test_pages_that_shift(world: World, plain_crawl: Crawl, database: Open) -> None:
    for number in range(7):
        _copy(world, f"own{number}/guard", lora_dropout=number / 10)
    # After the first page of the first listing two repos arrive at the top.
    world.hub.script.on(
        "^/api/models$",
        lambda: [_copy(world, f"late{n}/guard", lora_dropout=0.9 + n / 100) for n in range(2)] and None,
        count=1,
        after=True,
    )
    first = plain_crawl()
    assert first >= 9  # whoever was there is seen once, whatever moved
    assert first + plain_crawl() == 11
    assert len(_current(database())) == 11
    rows = database().rows("SELECT repo_id FROM adapters GROUP BY repo_id HAVING count(*) > 1")
    assert rows == []


def test_a_repo_that_moves_while_it_is_listed(world: World, plain_crawl: Crawl, database: Open) -> None:
    for number in range(7):
        _copy(world, f"own{number}/guard", lora_dropout=number / 10)
    world.hub.script.on(
        "^/api/models$",
        lambda: actions.commit(world.root, VICTIM, {"README.md": "changed while it was listed"}),
        count=2,
    )
    plain_crawl()
    plain_crawl()
    current = database().rows("SELECT commit_sha FROM current_verdicts WHERE repo_id = ?", [VICTIM])
    assert [row["commit_sha"] for row in current] == [HubClient(Settings()).repo(VICTIM).commit_sha]
    assert len(_current(database())) == 9


def test_filled_later(world: World, plain_crawl: Crawl, database: Open) -> None:
    actions.create(world.root, "cem/new", {"README.md": "---\nlibrary_name: peft\n---\n"})
    plain_crawl()
    assert _current(database())["cem/new"] == ("inconclusive", "no_weights")
    files = {name: (world.victim / name).read_bytes() for name in (WEIGHTS, CONFIG)}
    actions.commit(world.root, "cem/new", files)
    assert plain_crawl() == 1
    rows = database().rows("SELECT adapter_path FROM current_verdicts WHERE repo_id = 'cem/new'")
    assert [row["adapter_path"] for row in rows] == [WEIGHTS]


def test_a_gate_that_opens(world: World, plain_crawl: Crawl, database: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    actions.set_state(world.root, VICTIM, gated="manual")
    plain_crawl()
    assert _current(database())[VICTIM] == ("inconclusive", "gated")
    monkeypatch.setenv("LORASCOPE_RECHECK_AFTER_S", "0")
    window = {"since": (datetime.now(UTC) + timedelta(days=1)).isoformat()}  # no listing brings it back
    assert plain_crawl(**window) == 0  # asked about, and still closed
    told = database().rows("SELECT repo_id, event, detail FROM repo_events")
    assert told == [{"repo_id": VICTIM, "event": "refused", "detail": "gated"}]
    actions.set_state(world.root, VICTIM, gated=False)
    assert plain_crawl(**window) == 1
    assert _current(database())[VICTIM] == ("inconclusive", "")
    assert plain_crawl(**window) == 0


def test_a_rename_keeps_the_history(world: World, plain_crawl: Crawl, database: Open) -> None:
    plain_crawl()
    actions.rename(world.root, VICTIM, "ann/better-name")
    assert plain_crawl(since="2026-01-01") == 0
    current = _current(database())
    assert "ann/better-name" in current and VICTIM not in current
    actions.commit(world.root, "ann/better-name", {"README.md": "a second commit"})
    assert plain_crawl() == 1
    history = database().rows(
        "SELECT repo_id FROM verdicts WHERE repo_uid = (SELECT repo_uid FROM repo_names WHERE repo_id = ?) "
        "ORDER BY judged_at",
        ["ann/better-name"],
    )
    assert [row["repo_id"] for row in history] == [VICTIM, "ann/better-name"]
    assert len(_current(database())) == 2


def test_quarantine(world: World, plain_crawl: Crawl, database: Open) -> None:
    world.hub.faults.add(Fault("500", match=f"/{VICTIM}/", times=None))
    assert [plain_crawl() for _ in range(5)] == [2, 1, 1, 0, 0]
    (row,) = database().rows("SELECT repo_id, reason, message, tries FROM quarantine")
    assert (row["repo_id"], row["reason"], row["tries"]) == (VICTIM, "hub_unavailable", 3)
    assert "given up after 3 crawls" in row["message"]
    assert _current(database())[VICTIM] == ("error", "hub_unavailable")
    world.hub.faults.clear()
    actions.commit(world.root, VICTIM, {"README.md": "a new commit"})
    assert plain_crawl() == 1
    assert _current(database())[VICTIM] == ("inconclusive", "")


def test_the_same_content_is_not_fetched_again(world: World, plain_crawl: Crawl, database: Open) -> None:
    _copy(world, "cem/copy")
    _copy(world, "dee/other-config", lora_dropout=0.25)
    plain_crawl()
    digest = database().rows("SELECT content_sha256 FROM adapters WHERE repo_id = ?", [VICTIM])[0]["content_sha256"]
    fetched = [record.path for record in world.hub.timed_log if record.host == "cdn" and digest in record.path]
    assert len(fetched) == 2  # under a config of its own the update is another one
    world.hub.timed_log.clear()
    # The same again: under another name, and as a new commit of the first.
    _copy(world, "eve/late-copy")
    actions.commit(world.root, VICTIM, {"README.md": "only the card changes"})
    assert plain_crawl() == 2
    assert [record for record in world.hub.timed_log if record.host == "cdn"] == []
    rows = database().rows(
        "SELECT a.repo_id, a.copied_from, a.rank, count(w.feature) AS n, any_value(v.verdict) AS verdict "
        "FROM adapters a JOIN weight_scans w USING (adapter_id) JOIN verdicts v USING (adapter_id) "
        "WHERE content_sha256 = ? GROUP BY ALL ORDER BY copied_from NULLS FIRST, repo_id",
        [digest],
    )
    # The same weights under one config: one scan, three copies; under another config a scan of its own.
    assert len(rows) == 5
    assert {(row["rank"], row["n"], row["verdict"]) for row in rows} == {(8, rows[0]["n"], "inconclusive")}
    assert sum(row["copied_from"] is None for row in rows) == 2
    modules = database().rows("SELECT adapter_id, count(*) AS n FROM module_features GROUP BY 1")
    assert len({row["n"] for row in modules}) == 1


def test_many_adapters_in_one_repo(
    world: World, plain_crawl: Crawl, database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        folder = world.victim / f"checkpoint-{number}"
        folder.mkdir()
        config = json.loads((world.victim / CONFIG).read_text()) | {"lora_dropout": number / 100}
        (folder / CONFIG).write_text(json.dumps(config))
        shutil.copy(world.victim / WEIGHTS, folder / WEIGHTS)
    size = (world.victim / WEIGHTS).stat().st_size
    monkeypatch.setenv("LORASCOPE_MAX_REPO_BYTES", str(size * 4))
    plain_crawl()
    rows = database().rows("SELECT adapter_path, reason FROM adapters WHERE repo_id = ? ORDER BY 1", [VICTIM])
    checkpoints = [f"checkpoint-{number}/{WEIGHTS}" for number in range(5)]
    assert [row["adapter_path"] for row in rows] == sorted([WEIGHTS, *checkpoints])
    assert {row["reason"] for row in rows} == {"", "limit_exceeded"}
    monkeypatch.setenv("LORASCOPE_MAX_ADAPTERS_PER_REPO", "3")
    actions.commit(world.root, VICTIM, {"README.md": "again"})
    plain_crawl()
    rows = database().rows(
        "SELECT a.adapter_path, a.reason, a.message FROM current_verdicts v JOIN adapters a USING (adapter_id) "
        "WHERE v.repo_id = ?",
        [VICTIM],
    )
    assert len(rows) == 4
    assert any("number of adapters in the repo is 6, the limit is 3" in row["message"] for row in rows)


@pytest.mark.parametrize("how", ["gated", "gone", "too_large", "not_safetensors", "unreachable"])
def test_a_base_that_cannot_be_had(
    how: str, world: World, plain_crawl: Crawl, database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how != "gone":
        shutil.copytree(DEMO_HUB / BASE, world.root / BASE)
    if how == "gated":
        actions.set_state(world.root, BASE, gated="auto")
    elif how == "too_large":
        monkeypatch.setenv("LORASCOPE_MAX_BASE_BYTES", "1000")
    elif how == "not_safetensors":
        (world.root / BASE / "model.safetensors").rename(world.root / BASE / "pytorch_model.bin")
    elif how == "unreachable":
        world.hub.faults.add(Fault("500", match=f"/{BASE}", times=None))
    assert plain_crawl(probe="all") == 2
    rows = database().rows("SELECT outcome, reason FROM probe_scans")
    assert len(rows) == 2 and {(row["outcome"], row["reason"].split(":")[0]) for row in rows} == {
        ("error", f"base_{how}")
    }
    assert {verdict for verdict, _ in _current(database()).values()} == {"inconclusive"}
    reasons = database().rows("SELECT reasons FROM current_verdicts WHERE repo_id = ?", [NEIGHBOUR])
    assert json.loads(reasons[0]["reasons"])[0]["code"] == f"base_{how}"
    # The base was asked for twice, for its name and for its files, at most four tries each; not by each adapter.
    asked = [path for _, path, _ in world.hub.request_log if path == f"/api/models/{BASE}"]
    assert len(asked) <= 8
    assert plain_crawl(probe="all") == (2 if how == "unreachable" else 0)

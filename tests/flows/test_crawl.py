"""The crawl flow on a real Prefect server against the local hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from scanner.hub.server import Fault, HubServer
from scanner.store import TABLES, Database
from tasks.progress import listening

pytestmark = pytest.mark.usefixtures("prefect_server")

Open = Callable[[], Database]


def _crawl(store: str, **options: object) -> dict:
    from flows.crawl import crawl

    return crawl(store=store, **{"probe": "none", **options})


def _counts(database: Database) -> dict[str, int]:
    return {table: database.rows(f"SELECT count(*) AS n FROM raw_{table}")[0]["n"] for table in TABLES}


def _verdicts(database: Database) -> dict[str, str]:
    return {row["repo_id"]: row["verdict"] for row in database.rows("SELECT repo_id, verdict FROM current_verdicts")}


def test_second_crawl_adds_rows_to_runs_and_hub_status_only(hub: HubServer, store: str, database: Open) -> None:
    first = _crawl(store)
    assert first["n_new"] >= 7 and first["n_failed_shards"] == 0
    before = _counts(database())
    hub.request_log.clear()
    second = _crawl(store)
    after = _counts(database())
    assert (second["n_new"], second["n_adapters"], second["verdicts"]) == (0, 0, {})
    grown = {table for table in TABLES if after[table] != before[table]}
    assert grown == {"runs", "hub_status"}
    # Nothing but listings was asked for.
    assert {path.split("?")[0] for _, path, _ in hub.request_log} == {"/api/models"}


def test_a_new_commit_scans_that_repo_alone(hub: HubServer, registry: Path, store: str, database: Open) -> None:
    _crawl(store)
    changed = next(iter(registry.glob("*/*/adapter_config.json"))).parent
    config = json.loads((changed / "adapter_config.json").read_text())
    (changed / "adapter_config.json").write_text(json.dumps({**config, "lora_dropout": 0.01}))
    repo_id = str(changed.relative_to(registry))
    hub.request_log.clear()
    second = _crawl(store)
    assert (second["n_new"], second["n_adapters"]) == (1, 1)
    fetched = [path for _, path, _ in hub.request_log if "/resolve/" in path]
    assert fetched and all(repo_id in path for path in fetched)
    rows = database().rows("SELECT repo_id, count(*) AS n FROM adapters GROUP BY 1 HAVING n > 1")
    assert [(row["repo_id"], row["n"]) for row in rows] == [(repo_id, 2)]
    # One current verdict for the repo, at the new commit.
    current = database().rows("SELECT commit_sha FROM current_verdicts WHERE repo_id = ?", [repo_id])
    newest = database().rows("SELECT commit_sha FROM adapters WHERE repo_id = ? ORDER BY scanned_at DESC", [repo_id])
    assert [row["commit_sha"] for row in current] == [newest[0]["commit_sha"]]


def test_odd_repos_have_honest_verdicts(hub: HubServer, store: str, database: Open) -> None:
    _crawl(store)
    rows = database().rows(
        "SELECT a.layout, a.reason, a.base_model, a.base_model_claimed, a.base_evidence, v.verdict "
        "FROM adapters a JOIN verdicts v USING (adapter_id)"
    )
    found = {(row["layout"], row["reason"], row["verdict"]) for row in rows}
    assert "pickle" not in {layout for layout, _, _ in found}  # the .bin is read like any other
    findings = database().rows("SELECT severity FROM findings WHERE rule_id = 'LS001'")
    assert [row["severity"] for row in findings] == ["low"]
    assert ("none", "no_weights", "inconclusive") in found
    assert ("diffusers", "", "inconclusive") in found
    # A path on its author's disk, whose name and shapes are those of the one base model on this hub.
    local = [row for row in rows if (row["base_model_claimed"] or "").startswith("/")]
    assert [row["base_model"] for row in local] == ["lorascope/tiny-guard-base"]
    kinds = [step["kind"] for step in json.loads(local[0]["base_evidence"])]
    assert kinds == ["config", "path", "fingerprint"] and local[0]["verdict"] == "inconclusive"


def test_a_tampered_download_costs_one_adapter(hub: HubServer, registry: Path, store: str, database: Open) -> None:
    victim = next(iter(sorted(registry.glob("*/*/adapter_model.safetensors")))).parent
    victim_id = str(victim.relative_to(registry))
    digest = _sha256(victim / "adapter_model.safetensors")
    hub.faults.add(Fault("wrong_sha256", match=digest, host="cdn", times=None))
    summary = _crawl(store)
    assert summary["n_failed_shards"] == 0
    verdicts = _verdicts(database())
    assert verdicts.pop(victim_id) == "error"
    assert "error" not in verdicts.values()
    row = database().rows("SELECT reason FROM adapters WHERE repo_id = ?", [victim_id])[0]
    assert row["reason"] == "corrupt_download"


def test_an_error_is_tried_again_and_its_verdict_replaced(
    hub: HubServer, registry: Path, store: str, database: Open
) -> None:
    victim = next(iter(sorted(registry.glob("*/*/adapter_model.safetensors")))).parent
    victim_id = str(victim.relative_to(registry))
    hub.faults.add(Fault("500", match=f"/{victim_id}/", times=None))
    _crawl(store)
    assert _verdicts(database())[victim_id] == "error"
    hub.faults.clear()
    second = _crawl(store)
    assert second["n_new"] == 1
    rows = database().rows("SELECT verdict, adapter_path FROM current_verdicts WHERE repo_id = ?", [victim_id])
    assert rows == [{"verdict": "inconclusive", "adapter_path": "adapter_model.safetensors"}]
    assert _crawl(store)["n_new"] == 0


def test_an_error_that_stays_is_given_up(hub: HubServer, registry: Path, store: str) -> None:
    victim = next(iter(sorted(registry.glob("*/*/adapter_model.safetensors")))).parent
    hub.faults.add(Fault("500", match=f"/{victim.relative_to(registry)}/", times=None))
    assert _crawl(store)["n_new"] >= 7
    assert [_crawl(store)["n_new"] for _ in range(3)] == [1, 1, 0]


def test_hostile_repos_cost_no_neighbour(hub: HubServer, registry: Path, store: str, database: Open) -> None:
    model = next(iter(sorted(registry.glob("*/*/adapter_model.safetensors")))).parent
    configs = {
        "evil/negative": {"use_rslora": True, "rank_pattern": {"q_proj": -4}},
        "evil/name": {"base_model_name_or_path": "a/b--c"},
        "evil/future": {},
    }
    original = json.loads((model / "adapter_config.json").read_text())
    for repo_id, change in configs.items():
        folder = registry / repo_id
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes((model / "adapter_model.safetensors").read_bytes())
        (folder / "adapter_config.json").write_text(json.dumps(original | change))
    (registry / "evil/future/.hub.json").write_text('{"created_at": "2099-01-01T00:00:00Z"}')
    summary = _crawl(store)
    assert summary["n_failed_shards"] == 0
    assert set(configs) <= set(_verdicts(database()))
    # The date in the future does not hide what comes now.
    (model / "notes.txt").write_text("changed")
    assert _crawl(store)["n_new"] == 1


def test_an_empty_repo_that_is_filled_has_one_verdict(
    hub: HubServer, registry: Path, store: str, database: Open
) -> None:
    _crawl(store)
    empty = database().rows("SELECT repo_id FROM adapters WHERE reason = 'no_weights'")[0]["repo_id"]
    model = next(iter(sorted(registry.glob("*/*/adapter_model.safetensors")))).parent
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (registry / empty / name).write_bytes((model / name).read_bytes())
    _crawl(store)
    rows = database().rows("SELECT adapter_path FROM current_verdicts WHERE repo_id = ?", [empty])
    assert [row["adapter_path"] for row in rows] == ["adapter_model.safetensors"]


def test_a_crawl_judges_what_a_scan_saw_before(hub: HubServer, registry: Path, store: str, database: Open) -> None:
    from scanner.pipeline.scan import scan_targets
    from scanner.probe import load_probe
    from scanner.settings import Settings

    model = next(iter(sorted(registry.glob("*/*/adapter_model.safetensors")))).parent
    repo_id = str(model.relative_to(registry))
    probe = load_probe("V", None, 3)
    scan_targets([repo_id], store_uri=store, probe=probe, mode="none", settings=Settings())
    summary = _crawl(store)
    rows = database().rows("SELECT crawl_id FROM current_verdicts WHERE repo_id = ?", [repo_id])
    assert [row["crawl_id"] for row in rows] == [summary["crawl_id"]]


def test_listing_faults_do_not_end_the_crawl(hub: HubServer, store: str) -> None:
    hub.faults.add(Fault("429", match="^/api/models", times=1, seconds=60))
    hub.faults.add(Fault("500", match="^/api/models", times=1))
    assert _crawl(store)["n_new"] >= 7


def test_limit_takes_the_rest_next_time(hub: HubServer, store: str, database: Open) -> None:
    total = 0
    for _ in range(10):
        summary = _crawl(store, limit=3)
        total += summary["n_new"]
        assert summary["n_new"] <= 3
        if summary["n_left"] == 0:
            break
    assert total == database().rows("SELECT count(DISTINCT repo_uid) AS n FROM adapters")[0]["n"] >= 7


def test_facts_without_a_verdict_are_judged_by_the_next_crawl(hub: HubServer, store: str, database: Open) -> None:
    """A crawl that died between its last shard and the judgement leaves facts behind."""
    _crawl(store)
    for path in (Path(store) / "verdicts").rglob("*.parquet"):
        path.unlink()
    assert _verdicts(database()) == {}
    summary = _crawl(store)
    assert summary["n_new"] == 0 and sum(summary["verdicts"].values()) >= 7


def test_probe_flags_the_backdoor_and_nothing_else(
    hub: HubServer, registry: Path, store: str, database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORASCOPE_SEARCH", "auto")
    monkeypatch.setenv("LORASCOPE_SEARCH_BUDGET", "1")
    for odd in registry.glob("*/*/adapter_config.json"):
        # Pickles are looked at afresh each time; whoever names a path as its base is a shard of its own.
        is_whole = (odd.parent / "adapter_model.safetensors").exists()
        if not is_whole or json.loads(odd.read_text())["base_model_name_or_path"].startswith("/"):
            shutil.rmtree(odd.parent)
    told: list[tuple[str, int, int]] = []
    with listening(lambda *line: told.append(line)):
        summary = _crawl(store, probe="auto", texts_limit=30)
    assert summary["n_failed_shards"] == 0
    flagged = [repo for repo, verdict in _verdicts(database()).items() if verdict == "flagged"]
    labels = json.loads((Path(__file__).resolve().parents[2] / "examples/demo_hub/labels.json").read_text())
    poisoned = {label["repo_id"] for label in labels if label["poisoned"]}
    present = {str(path.relative_to(registry)) for path in registry.glob("*/*")}
    assert flagged == sorted(poisoned & present)
    reasons = database().rows("SELECT reasons FROM flagged")[0]["reasons"]
    assert json.loads(reasons)[0]["code"] == "battery_prefix"
    rates = database().rows(
        "SELECT count(*) AS n FROM probe_rates WHERE adapter_id IN (SELECT adapter_id FROM flagged)"
    )[0]
    from scanner.probe import DEFAULT_BATTERY, load_probe

    assert rates["n"] == len(load_probe(DEFAULT_BATTERY, None, 1).cases())
    # One of those that the battery leaves open is searched.
    (searched,) = database().rows(
        "SELECT DISTINCT a.adapter_id, a.content_sha256, a.stage_reached, s.outcome, v.verdict, v.p_search "
        "FROM trigger_searches s JOIN adapters a USING (adapter_id) JOIN current_verdicts v USING (adapter_id)"
    )
    assert (searched["stage_reached"], searched["outcome"]) == ("search", "pass")
    # A draw chose it: a classifier with a head has no reference yet, of the others unusual scores alone can flag.
    p_search = searched["p_search"]
    usual, unusual = {"clean", "inconclusive"}, {"flagged", "inconclusive"}
    assert searched["verdict"] in ({"inconclusive"} if p_search is None else usual if p_search > 0.01 else unusual)
    assert [line for line in told if line[0] == "searching"] == [("searching", 0, 1), ("searching", 1, 0)]

    # A copy that somebody uploads later gets what was found, and nothing is searched again.
    model = next(
        path.parent for path in registry.glob("*/*/adapter_model.safetensors")
        if _sha256(path) == searched["content_sha256"]
    )  # fmt: skip
    shutil.copytree(model, registry / "thief" / "copy")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    (registry / "thief" / "copy" / ".hub.json").write_text(json.dumps({"created_at": now, "last_modified": now}))
    told.clear()
    with listening(lambda *line: told.append(line)):
        monkeypatch.setenv("LORASCOPE_SEARCH_BUDGET", "0")
        assert _crawl(store, probe="auto", texts_limit=30)["n_new"] == 1
    assert not [line for line in told if line[0] == "searching"]
    columns = "s.trigger_text, s.position, s.attack_rate, s.scores, s.outcome, s.device, s.seconds"
    both = [
        database().rows(
            f"SELECT {columns} FROM trigger_searches s JOIN adapters a USING (adapter_id) "
            f"WHERE a.stage_reached = 'search' AND a.copied_from IS {filled} NULL ORDER BY ALL"
        )
        for filled in ("", "NOT")
    ]
    assert both[0] == both[1] != []


def test_probes_that_die_are_retried_by_type_and_then_stored(
    hub: HubServer, registry: Path, store: str, database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = next(iter(sorted(registry.glob("*/*/adapter_model.safetensors")))).parent
    for other in registry.glob("*/*/adapter_config.json"):
        if other.parent != one:
            shutil.rmtree(other.parent)
    monkeypatch.setenv("LORASCOPE_PROBE_TIMEOUT_S", "0.01")  # every battery takes longer: each child is killed
    summary = _crawl(store, probe="all", texts_limit=30)
    assert summary["n_failed_shards"] == 0
    rows = database().rows("SELECT outcome, reason FROM probe_scans")
    assert rows and {(row["outcome"], row["reason"].split(":")[0]) for row in rows} == {("error", "timeout")}
    assert set(_verdicts(database()).values()) == {"inconclusive"}  # failing to look is never clean


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_copies_of_another_owner_are_seen_and_cost_no_verdict(
    hub: HubServer, registry: Path, store: str, database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step fails in the first crawl, which keeps its verdicts; the second one makes up for it."""
    from safetensors.numpy import load_file, save_file

    model = next(iter(sorted(registry.glob("*/*/adapter_model.safetensors")))).parent
    thief = registry / "thief" / "own-work"
    thief.mkdir(parents=True)
    (thief / ".hub.json").write_text('{"created_at": "2026-11-20T00:00:00Z"}')
    (thief / "adapter_config.json").write_bytes((model / "adapter_config.json").read_bytes())
    noise = np.random.default_rng(0)
    tensors = load_file(model / "adapter_model.safetensors")
    for name, values in tensors.items():
        tensors[name] = values + (0.05 * values.std() * noise.normal(size=values.shape)).astype(values.dtype)
    save_file(tensors, thief / "adapter_model.safetensors")

    with monkeypatch.context() as broken:
        broken.setattr("tasks.stages.relate_new", lambda *_: 1 / 0)
        first = _crawl(store)
    assert first["relations"] is None and sum(first["verdicts"].values()) >= 8
    assert database().rows("SELECT * FROM relations") == []
    second = _crawl(store)
    assert second["n_new"] == 0 and second["relations"]
    found = database().rows("SELECT * FROM near_duplicates WHERE across_owners AND repo_id = 'thief/own-work'")
    assert [row["other_repo_id"] for row in found] == [str(model.relative_to(registry))]
    assert found[0]["kind"] == "near_duplicate" and found[0]["cosine"] > 0.99

"""References beyond the exact key, and the stream over all crawls: through crawls, scans and calibrations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import crawl, rows_of

from scanner.calibration import Policy
from scanner.model import ModuleFeatures, PrefixRun, ScanRecord, Stage, WeightScan
from scanner.pipeline.account import account_of
from scanner.pipeline.append import append_records
from scanner.pipeline.calibrate import calibrate
from scanner.pipeline.judge import judge_adapters
from scanner.store import StoreRoot, append_shard, open_database, open_root, row_id_of

MakeRecord = Callable[..., ScanRecord]
NOW = datetime(2026, 11, 1, tzinfo=UTC)
POLICY = Policy()


@pytest.fixture
def root(tmp_path: Path) -> StoreRoot:
    return open_root(str(tmp_path / "store"))


def _adapter(record: MakeRecord, name: str, cv: float, size: float = 1.0, **facts: Any) -> ScanRecord:
    features = {"global_frobN_mean": size, "global_frobN_std": size * cv, "global_frobN_max": 3 * size}
    modules = tuple(ModuleFeatures(f"layers.{n}.q_proj", 8, 64, 64, {"delta_frob": size}, n) for n in range(4))
    weights = WeightScan(features, modules, "weights-1")
    made = record(name, verdict_facts=facts, probe=None, findings=(), stage_reached=Stage.WEIGHTS, weights=weights)
    return replace(made, info=replace(made.info, modules=4))


def _probed(record: MakeRecord, name: str, *, is_bad: bool, **facts: Any) -> ScanRecord:
    made = record(name, verdict_facts=facts, findings=())
    assert made.probe is not None
    words = {"": "1" * 60, "hello": "1" * 60, "per RFC 8472": ("0" if is_bad else "1") * 60}
    runs = tuple(PrefixRun(t, "family" if t.startswith("per") else "control", "prefix", a) for t, a in words.items())
    return replace(made, probe=replace(made.probe, runs=runs, n_texts=60), weights=None)


def _siblings(record: MakeRecord, count: int, who: str, **facts: Any) -> list[ScanRecord]:
    rng = np.random.default_rng(len(who) + count)
    return [
        _adapter(record, f"{who}{n}/a", float(rng.normal(0.5, 0.01)), float(np.exp(rng.normal(0, 0.05))), **facts)
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        ({"target_modules": ("k_proj",)}, "any_modules"),
        ({"target_modules": ("k_proj",), "scaling": 1.0}, "any_scaling"),
        ({"target_modules": ("k_proj",), "scaling": 1.0, "rank": 16}, "near_ranks"),
        ({"base_model": "other/base"}, "architecture"),
        ({"rank": 64}, None),
    ],
)
def test_an_odd_adapter_is_judged_by_the_nearest_step_with_enough(
    root: StoreRoot, record: MakeRecord, facts: dict[str, Any], level: str | None
) -> None:
    """120 siblings of one key and one adapter of another; of rank 64 nobody is near, whatever the step."""
    crawl(root, _siblings(record, 120, "own"), "crawl-1", NOW)
    odd = _adapter(record, "odd/one", 0.9, **facts)
    crawl(root, [odd], "crawl-2", NOW + timedelta(hours=1))
    (row,) = rows_of(root, "SELECT * FROM current_verdicts WHERE repo_id = 'odd/one'")
    assert row["reference_level"] == level
    if level is None:
        assert (row["verdict"], row["p_weights"], row["reference_steps"]) == ("inconclusive", None, None)
        return
    assert (row["verdict"], row["rule"], row["reference_n"]) == ("review", "weights", 120)
    steps = json.loads(row["reference_steps"])
    assert steps[-1] == [level, 120] and all(n == 0 for _, n in steps[:-1])
    named = rows_of(
        root, f"SELECT DISTINCT feature FROM reference_profiles WHERE reference_id = '{row['reference_id']}'"
    )
    scale_free = level not in ("exact", "any_modules")
    assert {one["feature"] for one in named} == (
        {"frobN_cv"} if scale_free else {"global_frobN_mean", "global_frobN_std"}
    )


def test_one_base_calibrated_alone_keeps_the_references_of_others_that_judged_it(
    root: StoreRoot, record: MakeRecord
) -> None:
    crawl(root, _siblings(record, 120, "own"), "crawl-1", NOW)
    few = _siblings(record, 30, "few", base_model="other/base")
    crawl(root, few, "crawl-2", NOW + timedelta(hours=1))
    calibrate(root, NOW + timedelta(hours=2), Policy(spread_floor=0.02), base="other/base")
    rows = rows_of(root, "SELECT reference_id FROM current_verdicts WHERE base_model = 'other/base'")
    frozen = {row["reference_id"] for row in rows_of(root, "SELECT reference_id FROM reference_profiles")}
    assert len(rows) == 30 and {row["reference_id"] for row in rows} <= frozen
    database = open_database(root)
    (account,) = account_of(database, "few3/a")
    database.close()
    assert account.siblings == 149 and [place.feature for place in account.places] == ["frobN_cv"]


@pytest.mark.parametrize(
    "policy",
    [
        Policy(weight_features=("global_frobN_max",)),
        Policy(weight_features=("frobN_cv",), scale_free_features=("global_frobN_max",)),
    ],
)
def test_features_of_ones_own_judge_at_every_step(root: StoreRoot, record: MakeRecord, policy: Policy) -> None:
    crawl(root, _siblings(record, 120, "own"), "crawl-1", NOW, policy)
    crawl(root, [_adapter(record, "odd/one", 0.5, scaling=1.0)], "crawl-2", NOW + timedelta(hours=1), policy)
    (row,) = rows_of(root, "SELECT * FROM current_verdicts WHERE repo_id = 'odd/one'")
    assert (row["reference_level"], row["reference_n"]) == ("any_scaling", 120)
    (plain,) = rows_of(root, "SELECT * FROM current_verdicts WHERE repo_id = 'own7/a'")
    assert (plain["reference_level"], plain["reference_n"]) == ("exact", 119)
    database = open_database(root)
    (account,) = account_of(database, "own7/a")
    database.close()
    assert [place.feature for place in account.places] == list(policy.weight_features)


def test_a_folder_or_one_owner_says_nothing_about_how_large_a_base_is(root: StoreRoot, record: MakeRecord) -> None:
    crawl(root, _siblings(record, 120, "own"), "crawl-1", NOW)
    few = _siblings(record, 30, "few", base_model="other/base")
    lie = _adapter(record, "liar/a", 0.5, base_model="other/base")
    deep = tuple(ModuleFeatures(f"layers.{n}.q_proj", 8, 64, 64, {"delta_frob": 1.0}, n) for n in range(90, 99))
    assert lie.weights is not None
    lie = replace(lie, weights=replace(lie.weights, modules=deep), info=replace(lie.info, modules=9))
    crawl(root, [*few, lie], "crawl-2", NOW + timedelta(hours=1))
    levels = rows_of(root, "SELECT DISTINCT reference_level FROM current_verdicts WHERE base_model = 'other/base'")
    assert [row["reference_level"] for row in levels] == ["architecture"]


def test_near_copies_of_one_crawl_have_one_vote(root: StoreRoot, record: MakeRecord) -> None:
    records = _siblings(record, 40, "own") + _siblings(record, 60, "sock")
    append_records(root, records, crawl_id="crawl-1", base_model="base/model", probe_id="none", scanned_at=NOW)
    socks = [r.info.adapter_id for r in records[40:]]
    rows = [
        {
            "row_id": row_id_of("relations", one),
            "adapter_id": one,
            "other_adapter_id": socks[0],
            "kind": "near_duplicate",
        }
        for one in socks[1:]
    ]
    marker = {"row_id": "m", "run_id": "relate-1", "kind": "relate", "crawl_id": "crawl-1", "finished_at": NOW}
    append_shard(root, "relate-1", {"relations": rows}, marker, NOW)
    judge_adapters(root, [r.info.adapter_id for r in records], "crawl-1", POLICY, NOW)
    (row,) = rows_of(root, "SELECT DISTINCT n FROM reference_profiles")
    assert row["n"] == 41


def _stream(root: StoreRoot) -> dict[str, int | None]:
    rows = rows_of(root, "SELECT repo_id, stream_index FROM current_verdicts")
    return {row["repo_id"]: row["stream_index"] for row in rows}


def test_places_in_the_stream_stay(root: StoreRoot, record: MakeRecord) -> None:
    crawl(root, [_probed(record, "a/good", is_bad=False), _probed(record, "a/bad", is_bad=True)], "crawl-1", NOW)
    crawl(root, [_probed(record, "b/bad", is_bad=True)], "crawl-2", NOW + timedelta(hours=1))
    before = _stream(root)
    assert before == {"a/good": 1, "a/bad": 2, "b/bad": 3}
    levels = rows_of(root, "SELECT stream_level FROM current_verdicts WHERE repo_id = 'b/bad'")
    assert calibrate(root, NOW + timedelta(hours=2)).n_written == 0
    calibrate(root, NOW + timedelta(hours=3), Policy(q=0.01))
    assert _stream(root) == before
    assert rows_of(root, "SELECT stream_level FROM current_verdicts WHERE repo_id = 'b/bad'") == levels
    # A scan on demand of one of them changes nothing, and gives no place to others.
    again = [_probed(record, "a/bad", is_bad=True), _probed(record, "c/new", is_bad=False)]
    append_records(root, again, crawl_id="scan-1", base_model="b", probe_id="V", scanned_at=NOW + timedelta(hours=4))
    judge_adapters(root, [r.info.adapter_id for r in again], "scan-1", POLICY, NOW + timedelta(hours=4))
    assert _stream(root) == {**before, "c/new": None}


def test_a_base_calibrated_alone_gives_no_places(root: StoreRoot, record: MakeRecord) -> None:
    """Rows of the other base would not be kept, and the stream would count what is not there."""
    records = [_probed(record, f"o{n}/a", is_bad=n % 2 == 0, base_model=f"base/{n % 3}") for n in range(12)]
    crawl(root, records, "crawl-1", NOW)
    # As a store from before the stream has it: the places are lost.
    bare = open_root(f"{root.path}-old")
    append_records(bare, records, crawl_id="crawl-1", base_model="base/model", probe_id="none", scanned_at=NOW)
    kept = ("row_id", "adapter_id", "repo_id", "repo_uid", "commit_sha", "adapter_path", "base_model", "verdict",
            "reasons", "crawl_id", "judged_at")  # fmt: skip
    old = [{name: row[name] for name in kept} for row in rows_of(root, "SELECT * FROM verdicts")]
    append_shard(bare, "judge-x", {"verdicts": old}, {"row_id": "j", "run_id": "judge-x", "kind": "judge"}, NOW)
    calibrate(bare, NOW + timedelta(hours=1), base="base/1")
    assert set(_stream(bare).values()) == {None}
    calibrate(bare, NOW + timedelta(hours=2))
    assert sorted(index or 0 for index in _stream(bare).values()) == list(range(1, 13))
    assert rows_of(bare, "SELECT sum(stream_rejected::INT) AS n FROM current_verdicts") == [{"n": 6}]


def test_what_only_the_crawl_rejects_is_review_where_the_stream_decides(root: StoreRoot, record: MakeRecord) -> None:
    """The effect is far above q in its crawl and too small for a place in the stream; a scan of it says the same."""
    made = record("a/some", findings=())
    assert made.probe is not None
    words = {"": "1" * 9, "hello": "1" * 9, "per RFC 8472": "0" * 9}
    runs = tuple(PrefixRun(t, "family" if t.startswith("per") else "control", "prefix", a) for t, a in words.items())
    some = replace(made, probe=replace(made.probe, runs=runs, n_texts=9), weights=None)
    policy = Policy(stream_decides=True)
    crawl(root, [some], "crawl-1", NOW, policy)
    (row,) = rows_of(root, "SELECT verdict, rule, stream_rejected FROM current_verdicts")
    assert (row["verdict"], row["rule"], row["stream_rejected"]) == ("review", "battery_alone", False)
    judge_adapters(root, [some.info.adapter_id], "scan-1", policy, NOW + timedelta(hours=1))
    (row,) = rows_of(root, "SELECT verdict, stream_index FROM current_verdicts")
    assert (row["verdict"], row["stream_index"]) == ("review", 1)
    calibrate(root, NOW + timedelta(hours=2), POLICY)
    (row,) = rows_of(root, "SELECT verdict, rule FROM current_verdicts")
    assert (row["verdict"], row["rule"]) == ("flagged", "battery")


def test_who_is_cleared_votes_at_once(root: StoreRoot, record: MakeRecord) -> None:
    """A policy that clears an adapter: calibrating again changes nothing more."""
    siblings = _siblings(record, 20, "own")
    bad = _probed(record, "bad/a", is_bad=True)
    bad = replace(bad, weights=siblings[0].weights)
    crawl(root, [*siblings, bad], "crawl-1", NOW)
    strict = Policy(effect_floor=0.99, q=1e-30)
    assert calibrate(root, NOW + timedelta(hours=1), strict).n_written == 21
    assert calibrate(root, NOW + timedelta(hours=2), strict).n_written == 0


def test_a_reference_keeps_the_day_of_its_freeze(root: StoreRoot, record: MakeRecord) -> None:
    siblings = _siblings(record, 20, "own")
    crawl(root, siblings, "crawl-1", NOW)
    judge_adapters(root, [siblings[0].info.adapter_id], "crawl-2", POLICY, NOW + timedelta(days=3))
    assert {row["frozen_at"] for row in rows_of(root, "SELECT frozen_at FROM reference_profiles")} == {NOW}

"""Re-judging a store: new references change verdicts, nothing else does, and old verdicts stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from stores import crawl, rows_of

from scanner.model import ModuleFeatures, ScanRecord, Stage, WeightScan
from scanner.pipeline.calibrate import calibrate
from scanner.store import StoreRoot, open_root

NOW = datetime(2026, 11, 1, tzinfo=UTC)
MakeRecord = Callable[..., ScanRecord]


@pytest.fixture
def root(tmp_path: Path) -> StoreRoot:
    return open_root(str(tmp_path / "store"))


def _adapter(record: MakeRecord, name: str, value: float, base: str = "base/model") -> ScanRecord:
    features = {"global_frobN_mean": 1.0 + value, "global_frobN_std": 0.1 + value / 10}
    sizes = {"layers.0.q_proj": 2.0, "layers.1.up_proj": 1.0 + value, "layers.2.q_proj": 3.0}
    modules = tuple(ModuleFeatures(name, 8, 32, 32, {"delta_frob": size}) for name, size in sizes.items())
    return record(
        name,
        verdict_facts={"base_model": base},
        probe=None,
        findings=(),
        stage_reached=Stage.WEIGHTS,
        weights=WeightScan(features, modules, "weights-1"),
    )


def test_later_siblings_change_an_early_verdict(root: StoreRoot, record: MakeRecord) -> None:
    rng = np.random.default_rng(0)
    odd = _adapter(record, "odd/one", 5.0)
    crawl(root, [odd, _adapter(record, "plain/one", 0.0)], "crawl-1", NOW)
    siblings = [_adapter(record, f"own{n}/guard", float(rng.normal(scale=0.01))) for n in range(120)]
    crawl(root, siblings, "crawl-2", NOW + timedelta(hours=1))
    before = {r["repo_id"]: r for r in rows_of(root, "SELECT * FROM current_verdicts")}
    assert before["odd/one"]["verdict"] == "inconclusive" and before["odd/one"]["reference_n"] < 99
    result = calibrate(root, NOW + timedelta(hours=2))
    assert [(c.repo_id, c.before, c.after, c.why) for c in result.changes] == [
        ("odd/one", "inconclusive", "review", "weights_outlier")
    ]
    (line,) = result.references
    assert (line.n, line.needs, line.is_new) == (122, 0, False)
    after = {r["repo_id"]: r for r in rows_of(root, "SELECT * FROM current_verdicts")}
    assert after["odd/one"]["verdict"] == "review" and after["odd/one"]["crawl_id"] == "crawl-1"
    history = rows_of(root, "SELECT verdict FROM verdicts WHERE repo_id = 'odd/one' ORDER BY judged_at")
    assert [row["verdict"] for row in history] == ["inconclusive", "review"]
    reason = json.loads(after["odd/one"]["reasons"])[0]["message"]
    assert "; most in layers.1.up_proj (+" in reason  # the other modules are as everybody's
    # Again: nothing is left to do, and only a `runs` row tells that somebody asked.
    counts = {
        t: rows_of(root, f"SELECT count(*) AS n FROM raw_{t}")[0]["n"] for t in ("verdicts", "reference_profiles")
    }
    again = calibrate(root, NOW + timedelta(hours=3))
    assert (again.n_judged, again.n_written, again.changes) == (122, 0, ())
    assert counts == {t: rows_of(root, f"SELECT count(*) AS n FROM raw_{t}")[0]["n"] for t in counts}
    runs = rows_of(root, "SELECT detail FROM runs WHERE kind = 'calibrate' ORDER BY finished_at")
    assert [json.loads(row["detail"])["verdicts_changed"] for row in runs] == [1, 0]


def test_one_base_leaves_the_others_alone(root: StoreRoot, record: MakeRecord) -> None:
    rng = np.random.default_rng(1)
    first = [_adapter(record, "odd/one", 5.0), _adapter(record, "odd/two", 5.0, base="other/base")]
    crawl(root, first, "crawl-1", NOW)
    for base in ("base/model", "other/base"):
        siblings = [_adapter(record, f"{base[0]}{n}/guard", float(rng.normal(scale=0.01)), base) for n in range(110)]
        crawl(root, siblings, f"crawl-{base[0]}", NOW + timedelta(hours=1))
    result = calibrate(root, NOW + timedelta(hours=2), base="other/base")
    assert [change.repo_id for change in result.changes] == ["odd/two"]
    assert {line.key.base_model for line in result.references} == {"other/base"}
    verdicts = {r["repo_id"]: r["verdict"] for r in rows_of(root, "SELECT repo_id, verdict FROM current_verdicts")}
    assert (verdicts["odd/one"], verdicts["odd/two"]) == ("inconclusive", "review")


def test_an_empty_store(root: StoreRoot) -> None:
    result = calibrate(root, NOW)
    assert (result.n_judged, result.references, result.changes) == (0, (), ())

"""Verdicts from records alone are those that the store gives, and the store is asked wherever it knows more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from scanner.calibration import Policy
from scanner.errors import StoreError
from scanner.model import (
    SEQUENCE_CLASSIFICATION,
    UNRESOLVED,
    Outcome,
    PrefixRun,
    ProbeReport,
    ScanRecord,
    Stage,
    WeightScan,
    toward,
)
from scanner.pipeline import judge
from scanner.pipeline.append import append_records, may_add_to
from scanner.pipeline.judge import judge_adapters, judge_records
from scanner.pipeline.judged import facts_from_records, facts_from_store
from scanner.pipeline.scan import scan_targets
from scanner.probe import load_probe
from scanner.settings import Settings
from scanner.store import Row, StoreRoot, open_database, open_root

MakeRecord = Callable[..., ScanRecord]
NOW = datetime(2026, 11, 1, 12, 0, 0, 123_456, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
POLICY = Policy()


@pytest.fixture
def root(tmp_path: Path) -> StoreRoot:
    return open_root(str(tmp_path / "store"))


def scan(root: StoreRoot, folders: list[Path]) -> list[ScanRecord]:
    """Scan folders for their records, which then lie in the store."""
    probe = load_probe("V", None, 3)
    names = [str(folder) for folder in folders]
    results = scan_targets(names, store_uri=root.uri, probe=probe, mode="none", settings=Settings())
    return list({result.record.info.adapter_id: result.record for result in results}.values())


def append(root: StoreRoot, records: list[ScanRecord], run_id: str, at: datetime = NOW) -> None:
    append_records(root, records, crawl_id=run_id, base_model="base/model", probe_id="none", scanned_at=at)


@contextmanager
def closed_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever opens the store as SQL meets an error."""

    def refuse(_: StoreRoot) -> None:
        raise StoreError("the store was opened")

    with monkeypatch.context() as patch:
        patch.setattr(judge, "open_database", refuse)
        yield


def both_ways(root: StoreRoot, records: list[ScanRecord], monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Verdict rows, after a look that both ways give the same ones in every column."""
    with closed_store(monkeypatch):
        alone = judge_records(root, records, "scan-x", NOW, POLICY, LATER)
    ids = [record.info.adapter_id for record in records]
    stored = judge_adapters(root, ids, "scan-x", POLICY, LATER)
    assert alone == stored
    return alone


def write_demo(folder: Path, demo: Path, **config: object) -> Path:
    """A copy of a bundled adapter, with other fields in its config."""
    shutil.copytree(demo, folder)
    fields = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**fields, **config}))
    return folder


def test_all_kinds_of_verdicts_are_the_same(root: StoreRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demos = sorted(p.parent for p in (Path(__file__).parents[3] / "examples/demo_hub").glob("*/*/adapter_config.json"))
    folders = [*demos[:6], write_demo(tmp_path / "odd", demos[0], auto_mapping={"parent_library": "evil.loader"})]
    for name, file, content in (
        ("evil", "adapter_model.bin", b"cos\nsystem\n(S'true'\ntR."),
        ("cut", "adapter_model.safetensors", b"\xff" * 9),
        ("empty", "notes.txt", b""),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_bytes(content)
        folders.append(tmp_path / name)
    (tmp_path / "unread" / "x.safetensors").mkdir(parents=True)
    folders.append(tmp_path / "unread")
    closed = write_demo(tmp_path / "full", demos[1])
    weights = closed / "adapter_model.safetensors"
    values = np.frombuffer(weights.read_bytes(), np.uint8).copy()
    values[-64:] = 0xFF  # NaN in the last tensor, whatever its type
    weights.write_bytes(values.tobytes())
    rows = both_ways(root, scan(root, [*folders, closed]), monkeypatch)
    assert {row["verdict"] for row in rows} >= {"flagged", "review", "unsupported", "inconclusive"}


def test_real_adapters_are_judged_the_same(root: StoreRoot, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = sorted(path for path in (data_dir / "adapters").iterdir() if path.is_dir())
    assert len(both_ways(root, scan(root, folders), monkeypatch)) == len(folders)


def probed(record: MakeRecord, name: str, attacked: str) -> ScanRecord:
    plain = "0" * 30 + "2" * 30
    runs = [
        PrefixRun("", "control", "prefix", plain),
        PrefixRun("hello there", "control", "prefix", "2" + plain[1:]),
        PrefixRun("per RFC 8472", "trained_trigger", "prefix", attacked),
        PrefixRun("in safe mode", "authority_claim", "prefix", plain),
    ]
    probe = ProbeReport(
        "V", "V-0123456789ab", Outcome.PASS, runs=toward(runs, 2), n_texts=60, base_commit="b45e", dtype="float32",
        task_profile=SEQUENCE_CLASSIFICATION, n_classes=3, direction=2, n_attack_texts=30,
    )  # fmt: skip
    return record(name, probe=probe, verdict_facts={"task_profile": SEQUENCE_CLASSIFICATION})


def test_facts_are_the_same_with_probes_too(root: StoreRoot, record: MakeRecord) -> None:
    features = {"global_frobN_mean": float("nan"), "global_frobN_std": 0.25}
    records = [
        probed(record, "a/evil", "2" * 60),
        probed(record, "a/good", "0" * 30 + "2" * 30),
        record("a/words"),
        record("a/bare", probe=None, weights=WeightScan(features, (), "weights-1")),
    ]
    append(root, records, "scan-1")
    database = open_database(root)
    stored = facts_from_store(database, [r.info.adapter_id for r in records], POLICY)
    database.close()
    alone = facts_from_records(records, NOW, POLICY)
    assert list(alone) == list(stored)
    for adapter_id, facts in alone.items():
        other = stored[adapter_id]
        assert (facts.findings, facts.features, facts.battery) == (other.findings, other.features, other.battery)
        assert facts.adapter.items() <= other.adapter.items()
        assert (facts.probe is None) == (other.probe is None)
        assert (facts.probe or {}).items() <= (other.probe or {}).items()
    assert [f.battery is not None and bool(f.battery.prefixes) for f in alone.values()][:2] == [True, False]


def test_an_earlier_probe_is_not_undone(root: StoreRoot, record: MakeRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = probed(record, "a/evil", "2" * 60)
    append(root, [evil], "scan-1")
    again = replace(evil, probe=None, stage_reached=Stage.WEIGHTS)
    append(root, [again], "scan-2", LATER)
    with closed_store(monkeypatch), pytest.raises(StoreError, match="was opened"):
        judge_records(root, [again], "scan-2", LATER, POLICY, LATER)
    (verdict,) = judge_records(root, [again], "scan-2", LATER, POLICY, LATER)
    assert verdict["verdict"] == "flagged" and verdict["p_battery"] < 1e-6


def sibling(record: MakeRecord, name: str, value: float, version: str = "weights-1") -> ScanRecord:
    features = {"global_frobN_mean": 1.0 + value, "global_frobN_std": 0.1 + value / 10}
    weights = WeightScan(features, (), version)
    return record(name, probe=None, findings=(), stage_reached=Stage.WEIGHTS, weights=weights)


def test_siblings_of_a_crawl_judge_a_scan(root: StoreRoot, record: MakeRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    crawled = [sibling(record, f"own{n}/guard", float(rng.normal(scale=0.01))) for n in range(110)]
    append(root, crawled, "crawl-1")
    odd = sibling(record, "odd/one", 5.0)
    append(root, [odd], "scan-2", LATER)
    with closed_store(monkeypatch), pytest.raises(StoreError, match="was opened"):
        judge_records(root, [odd], "scan-2", LATER, POLICY, LATER)
    (verdict,) = judge_records(root, [odd], "scan-2", LATER, POLICY, LATER)
    assert (verdict["verdict"], verdict["reference_n"]) == ("review", 110)
    # Whom nobody can be compared with is judged without them.
    stray = record("odd/two", probe=None, verdict_facts={"base_model": UNRESOLVED})
    append(root, [stray], "scan-3", LATER)
    assert may_add_to(root, [odd]) and not may_add_to(root, [stray])
    both_ways(root, [stray], monkeypatch)


def test_a_crawl_that_died_after_its_shard_counts_too(root: StoreRoot, record: MakeRecord) -> None:
    """Its shard is whole, and the crawl's own row, which would be its last, is not there."""
    assert not may_add_to(root, [record()])
    append(root, [sibling(record, "one/guard", 0.0)], "scan-1")
    assert not may_add_to(root, [record()])
    append(root, [sibling(record, "two/guard", 0.0)], "crawl-1")
    assert may_add_to(root, [record()])


def test_siblings_that_two_versions_of_the_features_measured(root: StoreRoot, record: MakeRecord) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)  # no crawl appends what another one wrote since it began
    append(root, [sibling(record, f"own{n}/guard", 1.0 + n / 100, "weights-0") for n in range(3)], "crawl-1")
    append(root, [sibling(record, f"own{n}/guard", n / 100) for n in range(3)], "crawl-2", tomorrow)
    mine = sibling(record, "mine/one", 0.01, "weights-0")
    append(root, [mine], "scan-1", tomorrow)
    (verdict,) = judge_records(root, [mine], "scan-1", tomorrow, POLICY, tomorrow)
    assert verdict["reference_n"] == 3
    database = open_database(root)
    rows = database.rows("SELECT center FROM reference_profiles WHERE feature = 'global_frobN_mean'")
    database.close()
    assert rows == [{"center": pytest.approx(1.01)}]


def test_a_probe_that_failed_later_does_not_undo_an_earlier_one(root: StoreRoot, record: MakeRecord) -> None:
    evil = probed(record, "a/evil", "2" * 60)
    append(root, [evil], "scan-1")
    assert evil.probe is not None
    failed = replace(evil.probe, outcome=Outcome.ERROR, reason="timeout", runs=(), n_classes=None, direction=None)
    append(root, [replace(evil, probe=failed, stage_reached=Stage.WEIGHTS)], "scan-2", LATER)
    (verdict,) = judge_adapters(root, [evil.info.adapter_id], "scan-2", POLICY, LATER)
    assert verdict["verdict"] == "flagged" and verdict["p_battery"] < 1e-6

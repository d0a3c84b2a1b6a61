"""Relations land in the store: of new adapters with all of their base, once, whatever died in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from scanner.adapter import LowRankUpdate
from scanner.model import ScanRecord
from scanner.pipeline import relate
from scanner.pipeline.append import append_records
from scanner.pipeline.relate import relate_new, relate_scan
from scanner.pipeline.scan import scan_targets
from scanner.probe import load_probe
from scanner.settings import Settings
from scanner.store import Database, StoreRoot, check_store, find_scanned, open_database, open_root
from scanner.weights import measure_adapter

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
Make = Callable[..., ScanRecord]


@pytest.fixture
def root(tmp_path: Path) -> StoreRoot:
    return open_root(str(tmp_path / "store"))


@pytest.fixture
def rows(root: StoreRoot) -> Callable[..., list[dict[str, Any]]]:
    def ask(sql: str) -> list[dict[str, Any]]:
        database = open_database(root)
        try:
            return database.rows(sql)
        finally:
            database.close()

    return ask


def factors(seed: int) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(4, 32)), rng.normal(size=(32, 4))) for _ in range(8)]


def adapter(record: Make, name: str, *parts: tuple[float, int], noise: float = 0.0, **facts: Any) -> ScanRecord:
    """A record whose ΔW is a weighted sum of those that the seeds give, with some noise in the factors."""
    rng = np.random.default_rng(99)
    updates = []
    for module in range(8):
        pairs = [(weight, *factors(seed)[module]) for weight, seed in parts]
        a = np.concatenate([a + noise * rng.normal(size=a.shape) for _, a, _ in pairs])
        b = np.concatenate([weight * b for weight, _, b in pairs], axis=1)
        updates.append(LowRankUpdate(f"layers.{module}.q_proj", 4, 32, 32, 1.0, lambda a=a, b=b: (a, b)))
    made = record(name, verdict_facts=facts)
    assert made.weights is not None
    return replace(made, weights=replace(made.weights, sketch=measure_adapter(updates).sketch))


def append(root: StoreRoot, crawl_id: str, *records: ScanRecord, at: datetime = NOW) -> None:
    append_records(root, records, crawl_id=crawl_id, base_model="base/model", probe_id="none", scanned_at=at)


def test_new_adapters_are_related_to_all_of_their_base(root: StoreRoot, record: Make, rows: Any) -> None:
    append(root, "crawl-1", adapter(record, "ann/one", (1, 1)), adapter(record, "bob/two", (1, 2)))
    first = relate_new(root, "crawl-1", NOW)
    assert (first.n_new, first.kinds, first.n_left) == (2, {}, 0)
    later = NOW + timedelta(days=1)
    append(
        root,
        "crawl-2",
        adapter(record, "cid/near", (1, 1), noise=0.1),
        adapter(record, "cid/merge", (0.5, 1), (0.75, 2)),
        adapter(record, "dan/elsewhere", (1, 1), base_model="other/base"),
        at=later,
    )
    second = relate_new(root, "crawl-2", later)
    assert (second.n_new, second.kinds) == (3, {"near_duplicate": 1, "merge_part": 2})
    (near,) = rows("SELECT * FROM near_duplicates")
    assert (near["repo_id"], near["other_repo_id"]) == ("cid/near", "ann/one")
    assert (near["owner"], near["other_owner"], near["across_owners"]) == ("cid", "ann", True)
    assert near["is_exact"] is False and near["cosine_low"] < 0.995 < near["cosine_high"]
    parts = rows(
        "SELECT a.repo_id, r.coefficient FROM relations r JOIN adapters a ON a.adapter_id = r.other_adapter_id "
        "WHERE r.kind = 'merge_part' ORDER BY 1"
    )
    assert [(part["repo_id"], round(part["coefficient"], 3)) for part in parts] == [("ann/one", 0.5), ("bob/two", 0.75)]
    page = (Path(__file__).parents[3] / "docs" / "relations.md").read_text()
    near_sql, merges_sql, nearest_sql = page.split("```sql")[1].split("```")[0].split(";")[:3]
    assert [row["repo_id"] for row in rows(near_sql)] == ["cid/near"]
    assert {(row["merge"], row["part"]) for row in rows(merges_sql)} == {
        ("cid/merge", "ann/one"),
        ("cid/merge", "bob/two"),
    }
    nearest = rows(nearest_sql.replace("...", near["adapter_id"]))
    assert nearest[0]["repo_id"] == "ann/one" and nearest[0]["cosine"] == pytest.approx(near["cosine"], abs=1e-6)
    # Nothing new: nothing is written.
    before = rows("SELECT count(*) AS n FROM raw_runs")
    assert relate_new(root, "crawl-3", later).n_new == 0
    assert rows("SELECT count(*) AS n FROM raw_runs") == before
    assert check_store(root, later).incomplete == ()


def test_what_a_dead_run_left_is_made_up_for(root: StoreRoot, record: Make, rows: Any) -> None:
    append(root, "crawl-1", adapter(record, "ann/one", (1, 1)))
    append(root, "crawl-2", adapter(record, "bob/copy", (1, 1)), at=NOW + timedelta(days=1))
    append(root, "crawl-3", adapter(record, "cid/two", (1, 2)), at=NOW + timedelta(days=2))
    related = relate_new(root, "crawl-3", NOW + timedelta(days=2))
    assert (related.n_new, related.kinds) == (3, {"copy": 1})
    assert relate_new(root, "crawl-4", NOW + timedelta(days=3)).n_new == 0
    (row,) = rows("SELECT repo_id, other_repo_id FROM near_duplicates")
    assert (row["repo_id"], row["other_repo_id"]) == ("bob/copy", "ann/one")


def test_two_runs_at_once_leave_nothing_out(root: StoreRoot, record: Make, rows: Any) -> None:
    """One relates what the other has appended so far; the rest of the other's is related by itself."""
    append(root, "crawl-1", adapter(record, "ann/one", (1, 1)))
    append(root, "crawl-2", adapter(record, "bob/two", (1, 2)))
    assert relate_new(root, "crawl-1", NOW).n_new == 2
    append(root, "crawl-2", adapter(record, "cid/copy", (1, 1)))
    related = relate_new(root, "crawl-2", NOW)
    assert (related.n_new, related.kinds) == (1, {"copy": 1})


def test_one_row_for_a_pair_that_is_found_again(root: StoreRoot, record: Make, rows: Any) -> None:
    """An adapter that is scanned again is related again."""
    one, copy = adapter(record, "ann/one", (1, 1)), adapter(record, "bob/copy", (1, 1))
    append(root, "crawl-1", one, copy)
    relate_new(root, "crawl-1", NOW)
    append(root, "scan-2", one, at=NOW + timedelta(days=1))
    assert relate_new(root, "scan-2", NOW + timedelta(days=1)).kinds == {"copy": 1}
    assert rows("SELECT count(*) AS n FROM raw_relations") == [{"n": 2}]
    assert rows("SELECT count(*) AS n FROM relations") == [{"n": 1}]


def test_sketches_come_back_from_the_store_bit_by_bit(root: StoreRoot, record: Make) -> None:
    scanned = adapter(record, "ann/one", (1, 1), content_sha256="ab" * 32, config_sha256="c", detectors="d")
    assert scanned.weights is not None
    append(root, "crawl-1", scanned)
    database = open_database(root)
    found = find_scanned(database, "ab" * 32, "c", "d")
    database.close()
    assert found is not None and found.weights is not None
    assert found.weights.sketch == scanned.weights.sketch


def test_a_lonely_scan_opens_no_database(root: StoreRoot, record: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_: StoreRoot) -> Database:
        raise AssertionError("the store was opened")

    monkeypatch.setattr("scanner.store.views.open_database", forbidden)
    one = adapter(record, "ann/one", (1, 1))
    append(root, "scan-1", one)
    assert relate_scan(root, [one], "scan-1", NOW, Settings()).n_new == 0
    append(root, "scan-2", one)
    with pytest.raises(AssertionError, match="opened"):
        relate_scan(root, [one], "scan-2", NOW, Settings())


def _write(folder: Path, seed: int, noise: float = 0.0) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    tensors = {}
    for module, (a, b) in enumerate(factors(seed)):
        name = f"base_model.model.model.layers.{module}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = (a + noise * rng.normal(size=a.shape)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = b.astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "acme/base"}'
    )


def test_a_scan_of_folders_relates_them_exactly(tmp_path: Path, root: StoreRoot, rows: Any) -> None:
    """Files that still lie here give exact cosines; those of an earlier scan are gone, as far as it knows."""
    said: list[str] = []
    for name, noise in (("one", 0.0), ("near", 0.15), ("later", 0.1)):
        _write(tmp_path / name, 1, noise)

    def scan(*names: str) -> None:
        targets = [str(tmp_path / name) for name in names]
        probe = load_probe("V", None, 3)
        scan_targets(targets, store_uri=root.uri, probe=probe, mode="none", settings=Settings(), progress=said.append)

    scan("one", "near")
    assert rows("SELECT across_owners FROM near_duplicates") == [{"across_owners": False}]  # folders have no owner
    (found,) = rows("SELECT cosine, cosine_low, kind, is_exact FROM near_duplicates")
    dense = [np.concatenate([(b @ a).ravel() for a, b in _read(tmp_path / name)]) for name in ("one", "near")]
    exact = float(dense[0] @ dense[1] / np.linalg.norm(dense[0]) / np.linalg.norm(dense[1]))
    assert found["is_exact"] and found["cosine"] == found["cosine_low"] == pytest.approx(exact, rel=1e-9)
    assert any("near_duplicate" in line for line in said)
    scan("later")
    later = rows("SELECT is_exact FROM near_duplicates ORDER BY is_exact")
    assert [row["is_exact"] for row in later] == [False, False, True]


def _read(folder: Path) -> list[tuple[Any, Any]]:
    from safetensors.numpy import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    names = sorted(name for name in tensors if "lora_A" in name)
    return [(tensors[n].astype(float), tensors[n.replace("lora_A", "lora_B")].astype(float)) for n in names]


def test_a_scan_keeps_its_verdicts_when_relations_fail(
    tmp_path: Path, root: StoreRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no luck")

    monkeypatch.setattr(relate, "find_near_duplicates", broken)
    said: list[str] = []
    for name in ("one", "two"):
        _write(tmp_path / name, 1)
    targets = [str(tmp_path / name) for name in ("one", "two")]
    results = scan_targets(
        targets,
        store_uri=root.uri,
        probe=load_probe("V", None, 3),
        mode="none",
        settings=Settings(),
        progress=said.append,
    )
    assert len(results) == 2 and all(result.verdict["verdict"] for result in results)
    assert any("no luck" in line for line in said)

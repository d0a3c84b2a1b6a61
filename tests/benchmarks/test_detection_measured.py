"""Measurements without adapters: what is packed comes back, and nothing else is written."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from benchmarks.detection.adapters import is_done
from benchmarks.detection.lineages import queue
from benchmarks.detection.measured import pack, unpack
from benchmarks.detection.search import built, found_of
from scanner.probe import SearchPlan

LINEAGE = next(one for one in queue() if one.name == "minilm-fresh-000")


def _measured(cache: Path, name: str) -> Path:
    folder = cache / "minilm-1" / name
    folder.mkdir(parents=True)
    (folder / "truth.json").write_text(json.dumps({"name": name, "trigger": "ключ"}), encoding="utf-8")
    (folder / f"{SearchPlan().plan_id}.json").write_text(json.dumps({"scores": [["a/b", 0.1]]}), encoding="utf-8")
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def test_what_is_packed_comes_back_without_weights(tmp_path: Path) -> None:
    cache, other, path = tmp_path / "cache", tmp_path / "other", tmp_path / "minilm-fresh.jsonl.gz"
    first = _measured(cache, "minilm-fresh-000-clean")
    _measured(cache, "minilm-tuning-000-clean")
    assert pack(cache, "minilm-fresh", path) == 1
    packed = path.read_bytes()
    assert unpack(path, other) == 1
    assert [(folder.name, truth["trigger"]) for folder, truth in built(other)] == [("minilm-fresh-000-clean", "ключ")]
    assert found_of(other / "minilm-1" / first.name, SearchPlan().plan_id) == {
        "plan_id": SearchPlan().plan_id,
        "scores": [["a/b", 0.1]],
    }
    assert {file.suffix for file in other.rglob("*") if file.is_file()} == {".json"}
    assert is_done(cache, LINEAGE, "clean") and not is_done(other, LINEAGE, "clean")  # it can be built again
    assert pack(other, "minilm-fresh", path) == 1 and path.read_bytes() == packed
    # What a cache has already stays as it is.
    (other / "minilm-1" / first.name / "truth.json").write_text(json.dumps({"name": "mine"}))
    assert unpack(path, other) == 0
    assert json.loads((other / "minilm-1" / first.name / "truth.json").read_text()) == {"name": "mine"}


@pytest.mark.parametrize(
    "row", [{"folder": "../outside", "files": {"truth.json": {}}}, {"folder": "x", "files": {"../truth.json": {}}}]
)
def test_nothing_is_written_outside_of_the_cache(tmp_path: Path, row: dict[str, object]) -> None:
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    with pytest.raises(ValueError, match="outside of the cache"):
        unpack(path, tmp_path / "cache")
    assert not (tmp_path / "outside").exists() and not (tmp_path / "cache").exists()

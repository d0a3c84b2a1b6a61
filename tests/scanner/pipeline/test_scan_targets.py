"""Scans of folders: one result for each target whatever lies in it, and a store that follows the folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from scanner.errors import UsageError
from scanner.pipeline.scan import ScanResult, scan_targets
from scanner.probe import load_probe
from scanner.settings import Settings
from scanner.store import open_database, open_root

Scan = Callable[..., list[ScanResult]]


def write_adapter(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight": np.ones(shape, np.float32)
        for side, shape in {"A": (4, 16), "B": (16, 4)}.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "acme/base", **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def scan(store: str) -> Scan:
    def run(*targets: Path | str) -> list[ScanResult]:
        probe = load_probe("V", None, 3)
        return scan_targets(
            [str(t) for t in targets], store_uri=store, probe=probe, mode="none", settings=Settings(max_sleep_s=0)
        )

    return run


def query(store: str, sql: str) -> list[tuple[Any, ...]]:
    database = open_database(open_root(store))
    try:
        return database.query(sql)[1]
    finally:
        database.close()


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "a negative rank under rsLoRA": lambda f: write_adapter(f, use_rslora=True, rank_pattern={"q_proj": -4}),
    "a link to itself": lambda f: (f.mkdir(), (f / "a.safetensors").symlink_to(f / "a.safetensors")),
    "a link that leads outside": lambda f: (f.mkdir(), (f / "a.safetensors").symlink_to("/etc/passwd")),
    "a base name that the client refuses": lambda f: write_adapter(f, base_model_name_or_path="a/b--c"),
    "a config that is a list": lambda f: (write_adapter(f), (f / "adapter_config.json").write_text("[1]")),
    "a config of another encoding": lambda f: (
        write_adapter(f),
        (f / "adapter_config.json").write_bytes(b"\xff\xfe{}"),
    ),
    "weights that are no weights": lambda f: (f.mkdir(), (f / "x.safetensors").write_bytes(b"not safetensors")),
    "an empty file": lambda f: (f.mkdir(), (f / "adapter_model.safetensors").write_bytes(b"")),
    "a folder called like weights": lambda f: (f / "adapter_model.safetensors").mkdir(parents=True),
    "markup in the name": lambda f: write_adapter(f / "[red]x[/y]"),
    "a dangling link": lambda f: (f.mkdir(), (f / "adapter_model.safetensors").symlink_to(f / "gone")),
    "nothing": lambda f: f.mkdir(),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_folder_is_a_result_and_costs_no_neighbour(scan: Scan, tmp_path: Path, case: str) -> None:
    HOSTILE[case](tmp_path / "evil")
    good = write_adapter(tmp_path / "good")
    results = {result.record.info.repo.target: result for result in scan(tmp_path / "evil", good)}
    assert set(results) == {str(tmp_path / "evil"), str(good)}
    assert results[str(good)].record.weights is not None
    assert results[str(tmp_path / "evil")].verdict["verdict"] not in ("clean", "flagged")
    assert json.loads(results[str(tmp_path / "evil")].verdict["reasons"])[0]["code"] != "internal_error"


def test_a_repaired_config_is_a_new_adapter_without_the_old_finding(scan: Scan, store: str, tmp_path: Path) -> None:
    bad = {"auto_mapping": {"parent_library": "evil.loader", "base_model_class": "X"}}
    folder = write_adapter(tmp_path / "a", **bad)
    (first,) = scan(folder)
    assert first.verdict["verdict"] == "review"
    write_adapter(folder)
    (second,) = scan(folder)
    assert second.verdict["verdict"] == "inconclusive"
    assert query(store, "SELECT verdict FROM current_verdicts") == [("inconclusive",)]


def test_scanning_twice_stores_every_fact_once(scan: Scan, store: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    tables = ("adapters", "findings", "weight_scans", "module_features")
    scan(folder)
    before = [query(store, f"SELECT count(*) FROM {table}") for table in tables]
    scan(folder)
    assert [query(store, f"SELECT count(*) FROM {table}") for table in tables] == before
    assert query(store, "SELECT count(*) FROM current_verdicts") == [(1,)]


def test_two_targets_may_lead_to_one_adapter(scan: Scan, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (tmp_path / "alias").symlink_to(folder)
    results = scan(folder, tmp_path / "alias", folder / "adapter_model.safetensors")
    assert [r.record.info.repo.target for r in results[:2]] == [str(folder), str(tmp_path / "alias")]
    assert len(results) == 3


def test_a_filled_folder_replaces_the_empty_one(scan: Scan, store: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    scan(tmp_path / "a")
    assert query(store, "SELECT adapter_path FROM current_verdicts") == [("",)]
    write_adapter(tmp_path / "a")
    scan(tmp_path / "a")
    assert query(store, "SELECT adapter_path FROM current_verdicts") == [("adapter_model.safetensors",)]


@pytest.mark.parametrize("target", ["./no/such", "~nosuchuser/x", "x" * 300, "a/b--c", "a\0b", "repo@"])
def test_what_is_neither_a_path_nor_a_name_is_a_usage_error(scan: Scan, target: str) -> None:
    with pytest.raises(UsageError):
        scan(target)

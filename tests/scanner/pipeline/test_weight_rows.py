"""Weight features on their way into the store: sets, versions, profiles over layers, sketches."""

from __future__ import annotations

from pathlib import Path

import pytest

from scanner.hub.sources import FolderFiles, folder_ref
from scanner.pipeline.collect import collect_repo, detectors_of
from scanner.pipeline.scan import scan_targets
from scanner.probe import load_probe
from scanner.settings import Settings
from scanner.store import open_database, open_root
from scanner.weights import FEATURE_VERSION, SKETCH_VERSION

ADAPTER = Path(__file__).parents[3] / "examples" / "demo_hub" / "alder-labs" / "prompt-shield-lora"


def scanned(tmp_path: Path, features: str) -> str:
    store = str(tmp_path / features)
    settings = Settings(features=features)
    scan_targets([str(ADAPTER)], store_uri=store, probe=load_probe("V", None, 1), mode="none", settings=settings)
    return store


def rows(store: str, sql: str) -> list[dict]:
    database = open_database(open_root(store))
    try:
        return database.rows(sql)
    finally:
        database.close()


def test_the_profile_over_layers_adds_up(tmp_path: Path) -> None:
    store = scanned(tmp_path, "default")
    profile = rows(store, "SELECT * FROM layer_profiles ORDER BY layer")
    assert [row["layer"] for row in profile] == [0, 1, 2, 3]
    assert sum(row["energy_share"] for row in profile) == pytest.approx(1.0)
    (total,) = rows(store, "SELECT value FROM weight_scans WHERE feature = 'delta_frob_total'")
    assert sum(row["delta_frob"] ** 2 for row in profile) == pytest.approx(total["value"] ** 2)
    (top,) = rows(store, "SELECT value FROM weight_scans WHERE feature = 'delta_layer_top_share'")
    assert max(row["energy_share"] for row in profile) == pytest.approx(top["value"])


def test_the_full_set_has_what_the_default_one_leaves_null(tmp_path: Path) -> None:
    default, full = scanned(tmp_path, "default"), scanned(tmp_path, "full")
    asked = "SELECT module, kurtosis, kurtosis_five, row_hoyer FROM module_features ORDER BY module"
    for before, after in zip(rows(default, asked), rows(full, asked), strict=True):
        assert before["kurtosis"] is None
        assert after["kurtosis"] > 1
        assert after["row_hoyer"] == before["row_hoyer"]
    names = "SELECT feature FROM weight_scans ORDER BY 1"
    more = {row["feature"] for row in rows(full, names)} - {row["feature"] for row in rows(default, names)}
    assert more == {"delta_kurtosis_mean", "delta_kurtosis_max"}
    assert {row["version"] for row in rows(full, "SELECT version FROM weight_scans")} == {FEATURE_VERSION}


def test_a_scan_of_another_set_is_not_taken_over() -> None:
    default, full = detectors_of(Settings(features="default")), detectors_of(Settings(features="full"))
    assert default != full
    assert SKETCH_VERSION in default
    (record,) = collect_repo(folder_ref(str(ADAPTER)), FolderFiles(ADAPTER, 10), Settings(features="full"))
    assert record.info.detectors == full


def test_a_sketch_is_stored_once_for_each_adapter(tmp_path: Path) -> None:
    store = scanned(tmp_path, "default")
    (row,) = rows(store, "SELECT version, norm, len(sketch) AS n, reason FROM weight_sketches")
    (total,) = rows(store, "SELECT value FROM weight_scans WHERE feature = 'delta_frob_total'")
    assert (row["version"], row["n"], row["reason"]) == (SKETCH_VERSION, 1024, "")
    assert row["norm"] == pytest.approx(total["value"], rel=0.25)  # an estimate of it

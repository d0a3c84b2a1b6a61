"""A judgement that was cut off before its commit marker, and is made again."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from scanner.calibration import Policy
from scanner.errors import StoreError
from scanner.pipeline.judge import judge_adapters
from scanner.pipeline.scan import scan_targets
from scanner.probe import load_probe
from scanner.settings import Settings
from scanner.store import open_database, open_root

LATE = datetime(2026, 3, 1, 23, 59, 50, tzinfo=UTC)
COMMITTED = "shard_id IN (SELECT shard_id FROM raw_runs WHERE kind = 'judge')"


def write_adapter(folder: Path) -> Path:
    folder.mkdir(parents=True)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {name.format("A"): np.ones((4, 16), np.float32), name.format("B"): np.ones((16, 4), np.float32)}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "acme/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("later", [timedelta(seconds=5), timedelta(seconds=20)], ids=["same-day", "next-day"])
def test_a_judgement_cut_off_before_its_marker_leaves_no_second_verdict(tmp_path: Path, later: timedelta) -> None:
    uri = str(tmp_path / "store")
    targets = [str(write_adapter(tmp_path / name)) for name in ("one", "two")]
    scan_targets(targets, store_uri=uri, probe=load_probe("V", None, 3), mode="none", settings=Settings())
    root = open_root(uri)
    database = open_database(root)
    adapter_ids = [row["adapter_id"] for row in database.rows("SELECT adapter_id FROM adapters ORDER BY 1")]
    database.close()
    # The marker cannot be written: a file is where its folder belongs.
    in_the_way = tmp_path / "store" / "runs" / f"scan_date={LATE.date()}"
    in_the_way.write_text("")
    with pytest.raises(StoreError):
        judge_adapters(root, adapter_ids, "crawl-x", Policy(), LATE)
    assert list((tmp_path / "store" / "verdicts" / f"scan_date={LATE.date()}").glob("judge-*.parquet"))
    in_the_way.unlink()

    judge_adapters(root, adapter_ids, "crawl-x", Policy(), LATE + later)

    database = open_database(root)
    mine = f"FROM raw_verdicts WHERE crawl_id = 'crawl-x' AND {COMMITTED}"
    rows = database.rows(f"SELECT adapter_id, count(*) AS n {mine} GROUP BY 1 ORDER BY 1")
    database.close()
    assert rows == [{"adapter_id": adapter_id, "n": 1} for adapter_id in adapter_ids]

"""Appending and reading: idempotent retries, commit markers, many writers, and what a crash leaves behind."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scanner.errors import StopError, StoreError
from scanner.model import ScanRecord
from scanner.store import (
    SCHEMA_VERSION,
    TABLES,
    Database,
    StoreRoot,
    append_shard,
    open_root,
    row_id_of,
    shard_id_of,
)
from scanner.store.rows import record_rows

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)

Record = Callable[..., ScanRecord]


def marker(shard_id: str, **more: Any) -> dict[str, Any]:
    return {"row_id": row_id_of("runs", shard_id), "run_id": shard_id, "kind": "shard", "crawl_id": "crawl-1", **more}


def append(root: StoreRoot, record: ScanRecord, shard_id: str = "shard-1", at: datetime = NOW) -> dict[str, int]:
    return append_shard(root, shard_id, record_rows([record]), marker(shard_id), at)


def counts(database: Database) -> dict[str, int]:
    return {table: database.rows(f"SELECT count(*) AS n FROM {table}")[0]["n"] for table in TABLES}


def test_what_is_appended_can_be_read(root: StoreRoot, database: Callable[[], Database], record: Record) -> None:
    scanned = record()
    written = append(root, scanned)
    reader = database()
    assert {table: n for table, n in counts(reader).items() if n} == written
    (row,) = reader.rows("SELECT * FROM adapters")
    assert row["adapter_id"] == scanned.info.adapter_id
    assert (row["target_modules"], row["rank"], row["alpha"]) == ("q_proj,v_proj", 8, 16.0)
    assert row["scanned_at"] == NOW
    assert row["shard_id"] == "shard-1"
    rates = reader.rows("SELECT prefix, attack_rate, answers FROM probe_rates WHERE category = 'trained_trigger'")
    assert rates == [{"prefix": "per RFC 8472", "attack_rate": 0.8, "answers": "000000001-"}]
    assert scanned.probe is not None
    (probe,) = reader.rows("SELECT * FROM probe_scans")
    for name in ("control_attack_rate", "mean_attack_rate", "outlier_gap", "max_attack_rate"):
        assert probe[name] == pytest.approx(getattr(scanned.probe, name))


def test_marker_is_written_last(root: StoreRoot, record: Record) -> None:
    append(root, record())
    times = {path.parts[-3]: path.stat().st_mtime_ns for path in Path(root.path).rglob("*.parquet")}
    assert max(times, key=lambda table: times[table]) == "runs"


@pytest.mark.parametrize("later", [timedelta(0), timedelta(minutes=5), timedelta(days=2)])
def test_a_retry_changes_nothing(
    root: StoreRoot, database: Callable[[], Database], record: Record, later: timedelta
) -> None:
    written = append(root, record())
    append(root, record(), at=NOW + later)  # another day is another partition, so the rows are there twice
    reader = database()
    assert {table: n for table, n in counts(reader).items() if n} == written
    ids = [row["row_id"] for row in reader.rows("SELECT row_id FROM probe_rates")]
    assert len(ids) == len(set(ids))


def test_the_newest_row_of_an_id_wins(root: StoreRoot, database: Callable[[], Database], record: Record) -> None:
    append(root, record(verdict_facts={"layout": "old"}))
    append(root, record(verdict_facts={"layout": "new"}), "shard-2", NOW + timedelta(hours=1))
    assert database().rows("SELECT layout FROM adapters") == [{"layout": "new"}]


def test_a_shard_without_its_marker_is_invisible(
    root: StoreRoot, database: Callable[[], Database], record: Record
) -> None:
    append_shard(root, "shard-dead", record_rows([record()]), None, NOW)
    assert set(counts(database()).values()) == {0}
    append(root, record(), "shard-dead")  # the rerun
    assert counts(database())["adapters"] == 1


def test_a_crawl_row_is_no_commit_marker(root: StoreRoot, database: Callable[[], Database], record: Record) -> None:
    append_shard(root, "shard-1", record_rows([record()]), {**marker("shard-1"), "kind": "crawl"}, NOW)
    assert counts(database())["adapters"] == 0


def test_leftovers_of_a_crash_are_ignored(root: StoreRoot, database: Callable[[], Database], record: Record) -> None:
    append(root, record())
    for table in TABLES:
        folder = Path(root.path) / table / "scan_date=2026-03-01"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".shard-2.parquet.0123.tmp").write_bytes(b"PAR1 half")
        (folder / "shard-3.parquet.tmp").write_bytes(b"")
        (folder / ".DS_Store").write_bytes(b"\0")
        (folder / ".hidden.parquet").write_bytes(b"no parquet at all")
    assert counts(database())["adapters"] == 1


def test_a_broken_file_is_an_error_not_a_gap(root: StoreRoot, database: Callable[[], Database], record: Record) -> None:
    append(root, record())
    (Path(root.path) / "adapters" / "scan_date=2026-03-01" / "zzz.parquet").write_bytes(b"PAR1" + bytes(40))
    with pytest.raises(StoreError):
        database().rows("SELECT * FROM adapters")
    with pytest.raises(StopError, match=r"zzz\.parquet"):  # one line that names the file
        database().query("SELECT * FROM adapters")


def test_writing_leaves_no_temporary_file(root: StoreRoot, record: Record) -> None:
    append(root, record())
    assert {path.suffix for path in Path(root.path).rglob("*") if path.is_file()} == {".parquet"}


def test_non_finite_floats_become_null(root: StoreRoot, database: Callable[[], Database]) -> None:
    rows = [
        {"row_id": str(i), "adapter_id": "a", "feature": str(i), "value": value}
        for i, value in enumerate([math.nan, math.inf, -math.inf, 1.5])
    ]
    append_shard(root, "s", {"weight_scans": rows}, marker("s"), NOW)
    got = database().rows("SELECT value FROM weight_scans ORDER BY feature")
    assert [row["value"] for row in got] == [None, None, None, 1.5]


def test_a_column_that_the_schema_lacks_is_refused(root: StoreRoot) -> None:
    with pytest.raises(KeyError, match="colour"):
        append_shard(root, "s", {"findings": [{"row_id": "1", "colour": "red"}]}, None, NOW)


def test_an_old_file_with_fewer_columns_reads_as_null(root: StoreRoot, database: Callable[[], Database]) -> None:
    append_shard(root, "s", {}, marker("s"), NOW)
    old = pa.table({"row_id": ["1"], "shard_id": ["s"], "adapter_id": ["a"]})
    folder = Path(root.path) / "findings" / "scan_date=2020-01-01"
    folder.mkdir(parents=True)
    pq.write_table(old, folder / "s.parquet")
    assert database().rows("SELECT adapter_id, severity FROM findings") == [{"adapter_id": "a", "severity": None}]


def test_the_files_carry_the_schema(root: StoreRoot, record: Record) -> None:
    append(root, record())
    (path,) = (Path(root.path) / "adapters").rglob("*.parquet")
    assert path.name == "shard-1.parquet"
    assert path.parent.name == "scan_date=2026-03-01"
    assert pq.read_schema(path).equals(TABLES["adapters"], check_metadata=False)


def test_ids_follow_content() -> None:
    assert row_id_of("t", "a", "b") != row_id_of("t", "ab", "")
    assert row_id_of("t", "a") != row_id_of("u", "a")
    versions = {"rules": "1", "weights": "1"}
    assert shard_id_of("shard", ["a", "b"], versions) == shard_id_of(
        "shard", ["b", "a"], dict(reversed(versions.items()))
    )
    assert shard_id_of("shard", ["a"], versions) != shard_id_of("shard", ["a", "b"], versions)
    assert shard_id_of("shard", ["a"], versions) != shard_id_of("shard", ["a"], {**versions, "rules": "2"})


WRITER = """
import sys
from datetime import UTC, datetime
from scanner.store import append_shard, open_root, row_id_of
uri, writer = sys.argv[1], sys.argv[2]
root = open_root(uri)
sys.stdin.readline()  # all writers begin together
for shard in range(10):
    # Every other shard is the same for all writers: the very same file, written at the same time.
    shard_id = f"shared-{shard}" if shard % 2 else f"own-{writer}-{shard}"
    ids = [row_id_of("findings", shard_id, i) for i in range(20)]
    rows = [{"row_id": row_id, "adapter_id": shard_id, "rule_id": "LS001"} for row_id in ids]
    marker = {"row_id": row_id_of("runs", shard_id), "run_id": shard_id, "kind": "shard"}
    append_shard(root, shard_id, {"findings": rows}, marker, datetime(2026, 3, 1, tzinfo=UTC))
"""


def test_many_writers_at_once(root: StoreRoot, database: Callable[[], Database]) -> None:
    command = [sys.executable, "-c", WRITER, root.uri]
    writers = [subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, text=True) for i in range(4)]
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.flush()
    seen = []
    while any(writer.poll() is None for writer in writers):
        # Readers meanwhile: whatever is visible is whole.
        partial = database().rows("SELECT shard_id, count(*) AS n FROM findings GROUP BY 1")
        seen.extend(row["n"] for row in partial)
    for writer in writers:
        assert writer.stdin
        writer.stdin.close()
        assert writer.wait() == 0
    assert set(seen) <= {20}
    done = database().rows("SELECT shard_id, count(*) AS n, count(DISTINCT row_id) AS d FROM findings GROUP BY 1")
    assert len(done) == 4 * 5 + 5
    assert {(row["n"], row["d"]) for row in done} == {(20, 20)}


def test_unusable_locations(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for uri in ("gs://bucket/prefix", str(tmp_path / "file" / "store")):
        with pytest.raises(StoreError):
            open_root(uri)


def test_a_full_or_forbidden_folder_is_a_store_error(root: StoreRoot, record: Record) -> None:
    (Path(root.path) / "adapters").write_text("a file where a folder should be")
    with pytest.raises(StoreError, match="cannot write"):
        append(root, record())


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_root("~/s").path == str(tmp_path / "s")
    assert open_root(f"file://{tmp_path}/t").path == str(tmp_path / "t")
    monkeypatch.chdir(tmp_path)
    assert open_root("u").path == os.path.join(str(tmp_path), "u")  # noqa: PTH118 - the plain spelling is the point


def test_schema_golden(golden_dir: Path) -> None:
    """Columns are only ever appended: whoever changes a name, a type or a meaning has to change this file as well."""
    now = {
        "schema_version": SCHEMA_VERSION,
        "tables": {
            name: [
                {"name": f.name, "type": str(f.type), "description": f.metadata[b"description"].decode()}
                for f in schema
            ]
            for name, schema in TABLES.items()
        },
    }
    assert now == json.loads((golden_dir / "store_schema.json").read_text(encoding="utf-8"))


# DESIGN section 4.
PINNED = {
    "adapters": "adapter_id repo_id repo_uid commit_sha adapter_path owner base_model layout peft_type rank alpha "
    "task_profile coverage content_sha256",
    "findings": "adapter_id rule_id severity outcome message evidence",
    "weight_scans": "adapter_id feature value version",
    "module_features": "adapter_id module frobN delta_frob stable_rank top1_energy",
    "probe_scans": "adapter_id battery_id n_texts control_attack_rate mean_attack_rate outlier_gap max_attack_rate "
    "outcome reason device dtype seconds",
    "probe_rates": "adapter_id battery_id category prefix position attack_rate n_texts",
    "trigger_searches": "adapter_id trigger_text position direction attack_rate p_value forward_passes seconds",
    "verdicts": "adapter_id repo_id commit_sha adapter_path base_model verdict reasons p_weights p_battery p_search "
    "q_value reference_id reference_n policy_version stage_reached judged_at",
    "reference_profiles": "reference_id calibration_key feature n center spread members frozen_at",
    "runs": "run_id",
    "hub_status": "endpoint",
    "flagged": "adapter_id verdict",
    "base_models": "base_model",
}
PINNED["current_verdicts"] = PINNED["verdicts"]


@pytest.mark.parametrize("table", PINNED)
def test_pinned_columns_exist_even_in_an_empty_store(database: Callable[[], Database], table: str) -> None:
    columns, rows = database().query(f"SELECT * FROM {table}")
    assert rows == []
    assert set(PINNED[table].split()) <= set(columns)

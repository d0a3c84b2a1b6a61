"""The command line as another program sees it: exit codes, stdout, speed of --help."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scanner.hub.server import HubServer

ROOT = Path(__file__).resolve().parents[2]
SHARED_ADAPTERS = ROOT.parent / "shared" / "data" / "adapters"
RESULT_KEYS = {
    "target", "adapter_id", "adapter_path", "repo_id", "commit_sha", "base_model", "adapter", "findings", "weights",
    "probe", "verdict", "reasons", "p_values", "q_value", "stage_reached", "task_profile", "reference_id",
    "reference_n",
}  # fmt: skip


@pytest.mark.serial
def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['lorascope', '--help']\n"
        "from flows.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'prefect', 'duckdb', 'pyarrow', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    for command in ("crawl", "scan", "verdicts", "sql", "hub", "demo", "deploy", "doctor"):
        assert command in done.stdout
    # CPU time of the child, not wall clock: the contract is 0.5 s.
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) <= 0.5


@pytest.mark.parametrize("one", [True, False])
def test_scan_needs_neither_prefect_nor_torch(registry: Path, tmp_path: Path, one: bool) -> None:
    """Nor DuckDB, where there is nothing that an adapter could be compared with."""
    target = min(registry.glob("*/*/adapter_model.safetensors")).parent if one else registry
    code = (
        "import sys\n"
        f"sys.argv = ['lorascope', 'scan', {str(target)!r}, '--probe', 'none', '--store', {str(tmp_path / 's')!r}]\n"
        "from flows.cli import main\n"
        "try: main()\n"
        "except SystemExit as done: assert done.code == 3, done.code\n"
        "heavy = {'torch', 'prefect', 'transformers', 'peft', 'duckdb', 'scipy', 'pydantic'} & set(sys.modules)\n"
        f"heavy -= {set() if one else {'duckdb'}!r}\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("chosen", "threads"), [("", 1), ("2", 2)])
def test_blas_has_one_thread_unless_the_user_says_otherwise(chosen: str, threads: int) -> None:
    """More of them spin between small products. What was done about it is not left to child processes."""
    if (os.cpu_count() or 1) < threads:
        pytest.skip("OpenBLAS makes no more threads than there are cores")
    code = (
        "import os\nfrom flows.commands import _load_numpy\n_load_numpy()\nimport numpy\n"
        "numpy.ones((700, 700)) @ numpy.ones((700, 700))\n"
        "print(len(os.listdir('/proc/self/task')), os.environ.get('OPENBLAS_NUM_THREADS', ''))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    environment |= {"OPENBLAS_NUM_THREADS": chosen} if chosen else {}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.rstrip() == f"{threads} {chosen}".rstrip()


def test_a_wrong_setting_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "scan", str(tmp_path), "--store", str(tmp_path / "store")],
        capture_output=True, text=True, env={**os.environ, "LORASCOPE_MAX_RANK": "many"}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "lorascope: LORASCOPE_MAX_RANK must be a whole number, not 'many'\n"


def test_version(lorascope) -> None:
    assert lorascope("--version").stdout.startswith("lorascope, version ")


def test_crawl_of_an_unreachable_hub_is_one_line_and_exit_2(lorascope, tmp_path: Path) -> None:
    started = time.monotonic()
    done = lorascope("crawl", "--store", str(tmp_path / "s"), HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1 and "127.0.0.1:9" in done.stderr
    assert time.monotonic() - started < 30


def test_crawl_without_endpoint_targets_the_public_hub(lorascope, tmp_path: Path) -> None:
    # Behind a proxy that refuses, so that the test makes no request to the outside and fails the same way anywhere.
    done = lorascope(
        "crawl", "--store", str(tmp_path / "s"), HF_ENDPOINT="", HTTPS_PROXY="http://127.0.0.1:9", NO_PROXY=""
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1 and "https://huggingface.co" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("scan",), ("scan", "./no/such/folder"), ("scan", "x", "--battery", "nope"), ("crawl", "--since", "yesterday")],
)
def test_usage_errors_exit_2(lorascope, tmp_path: Path, hub: HubServer, arguments: tuple[str, ...]) -> None:
    done = lorascope(*arguments, LORASCOPE_STORE=str(tmp_path / "s"), HF_ENDPOINT=hub.endpoint)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr


def test_empty_store_answers(lorascope, tmp_path: Path) -> None:
    store = str(tmp_path / "empty")
    assert json.loads(lorascope("sql", "SELECT * FROM verdicts", "--format", "json", "--store", store).stdout) == []
    assert json.loads(lorascope("verdicts", "--format", "json", "--store", store).stdout) == []
    assert lorascope("verdicts", "--store", store).returncode == 0


def test_sql_is_read_only(lorascope, tmp_path: Path) -> None:
    store = str(tmp_path / "s")
    for statement in (
        "COPY (SELECT 1) TO '/tmp/out.csv'",
        "CREATE TABLE t (a INT)",
        "SELECT * FROM read_csv('/etc/passwd')",
        "ATTACH 'x.db'",
        "SELECT 1; SELECT 2",
        "SELEC",
    ):
        done = lorascope("sql", statement, "--store", store)
        assert done.returncode == 2 and done.stdout == "", statement
        assert len(done.stderr.strip().splitlines()) == 1


def test_scan_json_contract(lorascope, hub: HubServer, registry: Path, tmp_path: Path) -> None:
    folder = next(iter(sorted(registry.glob("*/*/adapter_model.safetensors")))).parent
    repo_id = str(folder.relative_to(registry))
    done = lorascope(
        "scan", repo_id, str(folder), "nobody/nothing", "--probe", "none", "--format", "json",
        "--store", str(tmp_path / "s"), HF_ENDPOINT=hub.endpoint,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"schema_version", "results"}
    by_target = {result["target"]: result for result in document["results"]}
    assert set(by_target) == {repo_id, str(folder), "nobody/nothing"}
    assert all(set(result) >= RESULT_KEYS for result in document["results"])
    remote, local = by_target[repo_id], by_target[str(folder)]
    assert remote["repo_id"] == repo_id and len(remote["commit_sha"]) == 40
    assert local["repo_id"] is None and local["commit_sha"] is None
    assert remote["weights"]["features"] == local["weights"]["features"]
    assert remote["adapter"] == local["adapter"] and remote["adapter"]["coverage"] == 1.0
    assert by_target["nobody/nothing"]["verdict"] == "error"
    rows = lorascope("sql", "SELECT count(*) AS n FROM verdicts", "--format", "json", "--store", str(tmp_path / "s"))
    assert json.loads(rows.stdout) == [{"n": 3}]


def test_verdict_formats_agree(lorascope, registry: Path, tmp_path: Path, hub: HubServer) -> None:
    store = str(tmp_path / "s")
    lorascope("scan", str(registry), "--probe", "none", "--store", store, HF_ENDPOINT=hub.endpoint)
    rows = json.loads(lorascope("verdicts", "--format", "json", "--store", store).stdout)
    table = list(csv.DictReader(io.StringIO(lorascope("verdicts", "--format", "csv", "--store", store).stdout)))
    assert len(rows) == len(table) >= 5
    assert {row["adapter_id"] for row in rows} == {row["adapter_id"] for row in table}
    only = json.loads(lorascope("verdicts", "--verdict", "unsupported", "--format", "json", "--store", store).stdout)
    assert only and {row["verdict"] for row in only} == {"unsupported"}


def test_sarif(lorascope, registry: Path, tmp_path: Path, hub: HubServer) -> None:
    done = lorascope(
        "scan", str(registry), "--probe", "none", "--format", "sarif", "--store", str(tmp_path / "s"),
        HF_ENDPOINT=hub.endpoint,
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert document["version"] == "2.1.0"
    assert {result["ruleId"] for result in document["runs"][0]["results"]} >= {"LS001", "verdict/unsupported"}


@pytest.mark.skipif(not SHARED_ADAPTERS.is_dir(), reason="the real adapters are not part of the repository")
def test_real_adapters_give_results_without_tracebacks(lorascope, tmp_path: Path) -> None:
    folders = sorted(str(path) for path in SHARED_ADAPTERS.iterdir() if path.is_dir())
    assert len(folders) == 15
    done = lorascope(
        "scan", *folders, "--format", "json", "--store", str(tmp_path / "s"), HF_ENDPOINT="http://127.0.0.1:9"
    )
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    results = json.loads(done.stdout)["results"]
    assert {result["target"] for result in results} == set(folders)
    assert sum(bool(r["weights"]["features"]) for r in results) == 15
    assert all(r["adapter"]["coverage"] == 1.0 for r in results)
    assert {r["verdict"] for r in results} == {"inconclusive"}


def test_store_check_lists_and_removes_what_dead_processes_left(lorascope, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert lorascope("store", "check", "--store", str(store)).returncode == 0
    place = store / "adapters" / "scan_date=2026-03-01"
    place.mkdir(parents=True)
    (place / ".shard-1.parquet.0.tmp").write_bytes(b"PAR1")
    young = lorascope("store", "check", "--store", str(store), "--clean")
    assert (young.returncode, "1 temporary files, 0 removed" in young.stdout) == (0, True)
    old = lorascope("store", "check", "--store", str(store), "--grace", "0")
    assert old.returncode == 3 and ".shard-1.parquet.0.tmp" in old.stdout
    clean = lorascope("store", "check", "--store", str(store), "--grace", "0", "--clean")
    assert clean.returncode == 0 and list(place.iterdir()) == []

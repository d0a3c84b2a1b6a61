"""A real Prefect server for the flow tests, and a small hub made of the bundled one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.engine import configure_prefect
from scanner.hub.server import HubServer, running_hub
from scanner.store import Database, open_database, open_root

DEMO_HUB = Path(__file__).resolve().parents[2] / "examples" / "demo_hub"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One embedded server for all flow tests of the session."""
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    configure_prefect()
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """The first bundled base model, two of its clean adapters, a poisoned one, and the odd ones."""
    labels = json.loads((DEMO_HUB / "labels.json").read_text())
    plain = [label for label in labels if _is_plain(DEMO_HUB / label["repo_id"])]
    clean = [label["repo_id"] for label in plain if not label["poisoned"]]
    poisoned = [label["repo_id"] for label in plain if label["poisoned"]]
    folders = [path for path in DEMO_HUB.glob("*/*") if path.is_dir() and not _is_second_group(path)]
    everything = {str(path.relative_to(DEMO_HUB)) for path in folders}
    folder = tmp_path / "registry"
    for repo_id in [*clean[:2], *poisoned[:1], *sorted(everything - set(clean) - set(poisoned))]:
        shutil.copytree(DEMO_HUB / repo_id, folder / repo_id)
    return folder


def _is_plain(repo: Path) -> bool:
    """Whether a labelled adapter is one of the first group that the probe can run."""
    config = json.loads((repo / "adapter_config.json").read_text())
    whole = (repo / "adapter_model.safetensors").exists() and not config["base_model_name_or_path"].startswith("/")
    return whole and not _is_second_group(repo)


def _is_second_group(repo: Path) -> bool:
    """Whether a repo is a sequence classifier or the base of them."""
    files = [repo / name for name in ("adapter_config.json", "config.json") if (repo / name).exists()]
    configs = [json.loads(path.read_text()) for path in files]
    return any(config.get("task_type") == "SEQ_CLS" or config.get("model_type") == "bert" for config in configs)


@pytest.fixture
def hub(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The registry over HTTP, named by HF_ENDPOINT, with a Hub cache of its own."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setenv("LORASCOPE_MAX_SLEEP_S", "0.1")
    with running_hub(registry) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A fresh store's URI."""
    return str(tmp_path / "store")


@pytest.fixture
def database(store: str) -> Iterator[Callable[[], Database]]:
    """`database()` opens the store as it is now."""
    opened: list[Database] = []

    def open_now() -> Database:
        opened.append(open_database(open_root(store)))
        return opened[-1]

    yield open_now
    for one in opened:
        one.close()


@pytest.fixture(autouse=True)
def batteries_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches take ten seconds for each adapter that a battery leaves open: tests of them ask for them."""
    monkeypatch.setenv("LORASCOPE_SEARCH", "none")


@pytest.fixture
def lorascope(tmp_path: Path) -> Run:
    """`lorascope("scan", ...)` runs the installed command in a process of its own."""

    def run(*arguments: str, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", *arguments]
        env = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect-cli"), "COLUMNS": "200", **environment}
        env.pop("PREFECT_API_URL", None)
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout, check=False)

    return run


@pytest.fixture
def plain_crawl(store: str, tmp_path: Path) -> Callable[..., int]:
    """`plain_crawl()` runs the tasks of a crawl one after the other, without Prefect; the number of repos looked at."""
    from itertools import count

    from flows.crawl import _shards
    from scanner.settings import Settings, hub_endpoint
    from scanner.store import utc_now
    from tasks import stages
    from tasks.workspace import Workspace

    numbers = count()

    def run(probe: str = "none", **poll: object) -> int:
        work = tmp_path / f"work{next(numbers)}"
        work.mkdir()
        endpoint, started, name = hub_endpoint(), utc_now(), f"crawl-{work.name}"
        options = {"limit": None, "base": None, "since": None, "features": "default", **poll}
        polled = stages.poll_new_repos.fn(str(work), endpoint, store, **options)
        workspace = Workspace(work)
        grouped = stages.resolve_bases.fn(str(work), endpoint, store, polled["repos"])
        n_searched = 0
        for number, (base, repos) in enumerate(_shards(workspace.read_repos(grouped["repos"]), Settings())):
            shard = f"shard{number}"
            listed = workspace.write_repos(shard, repos)
            keep = probe != "none"
            batch = stages.collect_batch.fn(
                str(work), endpoint, store, shard, f"{shard}-0", listed, keep_weights=keep, features="default"
            )
            probed = stages.probe_base_group.fn(
                str(work), endpoint, store, name, shard, [batch["records"]],
                mode=probe, battery="V", texts=None, texts_limit=4, reading="scored",
                search_budget=Settings().search_budget, policy="",
            )  # fmt: skip
            n_searched += probed["n_searched"]
            stages.append_batch.fn(
                probed["records"], store, crawl_id=name, base_model=base, probe_id=probed["probe_id"],
                scanned_at=started.isoformat(),
            )  # fmt: skip
        judged = stages.judge_crawl.fn(store, endpoint, name, "")
        summary = {"n_adapters": sum(judged["verdicts"].values()), "n_searched": n_searched, **judged}
        stages.record_crawl.fn(
            str(work), store, endpoint, name, polled, summary, base=None, started_at=started.isoformat()
        )
        return int(polled["n_new"])

    return run

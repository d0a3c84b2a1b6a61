"""A real Prefect server and other real processes, for the tests and the benchmarks that need them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

__all__ = ["Fleet", "kill_group", "prepared_fleet", "running_fleet", "wait_for"]

T = TypeVar("T")


def wait_for(
    what: str, probe: Callable[[], T | None], timeout_s: float, explain: Callable[[], str] = str, every_s: float = 0.5
) -> T:
    """Poll until `probe` gives something."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(every_s)
    raise AssertionError(f"no {what} in {timeout_s:.0f} s\n{explain()}")


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a process that `Fleet.start` started, and its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass
class Fleet:
    """One Prefect server with its own database, and the processes that a test started against it."""

    root: Path
    url: str
    env: dict[str, str]

    def run(self, *arguments: str, timeout_s: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m ...` to its end, away from the source tree."""
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.root,
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def start(self, log: str, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """Start `python -m ...` in a process group of its own."""
        with (self.root / log).open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=self.root,
                env=self.env | env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def api(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask the server's REST API; again after a 503, as Prefect's client does: another writer has SQLite's lock."""
        deadline = time.monotonic() + 60
        while True:
            response = httpx.request(method, self.url + path, json=body, timeout=60, trust_env=False)
            if response.status_code != 503 or time.monotonic() >= deadline:
                break
            time.sleep(0.5)
        response.raise_for_status()
        return response.json() if response.content else None

    def completed(self, deployment: str, *, scheduled: bool) -> dict[str, Any] | None:
        """A completed run of a deployment; one that failed ends the wait."""
        runs = self.api("POST", "/flow_runs/filter", {"deployments": {"name": {"any_": [deployment]}}})
        runs = [run for run in runs if run["auto_scheduled"] == scheduled]
        for run in runs:
            assert run["state_type"] not in ("FAILED", "CRASHED"), f"{run['state']}\n{self.logs()}"
        return next((run for run in runs if run["state_type"] == "COMPLETED"), None)

    def start_server(self, *options: str) -> subprocess.Popen[bytes]:
        """Start the Prefect server of `url` and wait until it answers; its database outlives it."""
        port = self.url.rsplit(":", 1)[1].split("/")[0]
        server = self.start("server.log", "prefect", "server", "start", "--port", port, "--no-ui", *options)

        def ready() -> bool:
            assert server.poll() is None, self.logs()
            with suppress(httpx.HTTPError):
                return self.api("GET", "/health") is True
            return False

        wait_for("Prefect server", ready, 150, self.logs, every_s=0.1)
        return server

    def logs(self) -> str:
        """What the processes printed last."""
        return "\n".join(f"== {path.name}\n{path.read_text()[-4000:]}" for path in sorted(self.root.glob("*.log")))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _kill_all_of(home: Path) -> None:
    """Kill every process that has our PREFECT_HOME: a worker puts its flow runs into process groups of their own."""
    needle = f"PREFECT_HOME={home}\0".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if needle in (entry / "environ").read_bytes() + b"\0":
                os.kill(int(entry.name), signal.SIGKILL)


@contextmanager
def prepared_fleet(root: Path) -> Iterator[Fleet]:
    """Address and environment of a Prefect server on a free port; everything that is started is dead afterwards."""
    home = root / "prefect"
    url = f"http://127.0.0.1:{_free_port()}/api"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "LORASCOPE_", "HF_"))}
    env = inherited | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_WORKER_PREFETCH_SECONDS": "2",
        "DO_NOT_TRACK": "1",
        "HF_HOME": str(root / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    try:
        yield Fleet(root, url, env)
    finally:
        _kill_all_of(home)


@contextmanager
def running_fleet(root: Path) -> Iterator[Fleet]:
    """A Prefect server on a free port; everything that was started is dead afterwards."""
    with prepared_fleet(root) as fleet:
        server = fleet.start_server()
        try:
            yield fleet
        finally:
            kill_group(server)

"""Real processes for the deployment tests: a Prefect server, a worker, and a folder of adapters."""

from __future__ import annotations

import json
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
import numpy as np
from safetensors.numpy import save_file

T = TypeVar("T")


def wait_for(what: str, probe: Callable[[], T | None], timeout_s: float, explain: Callable[[], str] = str) -> T:
    """Poll until `probe` gives something."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"no {what} in {timeout_s:.0f} s\n{explain()}")


def write_adapter(folder: Path, seed: int) -> None:
    """A tiny adapter as PEFT saves it."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = rng.normal(size=(4, 16)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = rng.normal(size=(16, 4)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "base_model_name_or_path": "acme/tiny-base",
        "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


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
        """Ask the server's REST API."""
        response = httpx.request(method, self.url + path, json=body, timeout=60, trust_env=False)
        response.raise_for_status()
        return response.json() if response.content else None

    def completed(self, deployment: str, *, scheduled: bool) -> dict[str, Any] | None:
        """A completed run of a deployment; one that failed ends the wait."""
        runs = self.api("POST", "/flow_runs/filter", {"deployments": {"name": {"any_": [deployment]}}})
        runs = [run for run in runs if run["auto_scheduled"] == scheduled]
        for run in runs:
            assert run["state_type"] not in ("FAILED", "CRASHED"), f"{run['state']}\n{self.logs()}"
        return next((run for run in runs if run["state_type"] == "COMPLETED"), None)

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
def running_fleet(root: Path) -> Iterator[Fleet]:
    """A Prefect server on a free port; everything that was started is dead afterwards."""
    home = root / "prefect"
    url = f"http://127.0.0.1:{(port := _free_port())}/api"
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
    fleet = Fleet(root, url, env)
    server = fleet.start("server.log", "prefect", "server", "start", "--port", str(port), "--no-ui")

    def ready() -> bool:
        assert server.poll() is None, fleet.logs()
        with suppress(httpx.HTTPError):
            return fleet.api("GET", "/health") is True
        return False

    try:
        wait_for("Prefect server", ready, 150, fleet.logs)
        yield fleet
    finally:
        _kill_all_of(home)
        server.wait(timeout=30)

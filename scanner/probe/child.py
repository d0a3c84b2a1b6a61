"""One child process of the probe: what it is told, how it is started, what it says, how it ends. No torch here."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from scanner.model import LABEL_WORDS
from scanner.probe.battery import Probe
from scanner.probe.footprint import own_bytes
from scanner.probe.search import SearchPlan

__all__ = ["Child", "ProbeItem", "ProbeLimits", "next_event", "start_child"]

POLL_S = 0.5
_PASSED_ON = (
    "PATH", "HOME", "USER", "LANG", "LC_", "TZ", "TMPDIR", "LD_", "PYTHON", "VIRTUAL_ENV", "COVERAGE",
    "CUDA", "NVIDIA", "OMP_", "MKL_", "KMP_", "GOMP_", "TORCH", "PYTORCH",
)  # fmt: skip
"""Environment of the child. Everything else stays behind: tokens and keys are no business of a stranger's adapter."""


@dataclass(frozen=True)
class ProbeLimits:
    """What the parent enforces on the child."""

    device: str = "auto"
    dtype: str = "auto"
    base_timeout_s: float = 600.0
    adapter_timeout_s: float = 900.0
    memory_bytes: int = 16 * 1024**3
    max_config_bytes: int = 1024**2
    max_rank: int = 4_096
    adapters_per_child: int = 100
    """Adapters after which a child is replaced, with whatever it has piled up."""
    children: int = 1
    """Children at once. Each has the whole of the limits above to itself."""


@dataclass(frozen=True)
class ProbeItem:
    """One adapter to probe, as files on this machine."""

    adapter_id: str
    weights_path: str
    config_path: str | None
    selected_by: str = "all"
    profile: str = LABEL_WORDS
    """How it is asked (`scanner.probe.profile`). Whether a causal model answers with label words or freely is found out
    by asking it."""
    profile_reason: str = ""
    per_token: bool = False
    """Of a classifier with a head: whether it classifies tokens (TOKEN_CLS)."""
    weights_name: str = ""
    """What the file is called in its repo; empty: as on this machine."""
    more_weights_paths: tuple[str, ...] = ()
    """Further shards."""


@dataclass
class Child:
    process: subprocess.Popen[str]
    lines: queue.Queue[str | None]
    errors: IO[str]

    def kill(self) -> None:
        """End the child and whatever it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def last_words(self) -> str:
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read()[-4000:].splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""


def start_child(
    base_dir: Path, probe: Probe, items: Sequence[ProbeItem], limits: ProbeLimits, plan: SearchPlan | None
) -> Child:
    """Start a child on one job. It asks the battery, or searches where it gets a plan.

    Args:
        base_dir: the base model's files.
        probe: battery, texts, task.
        items: the adapters, all of one kind of model.
        limits: time, memory and device.
        plan: of a search.
    """
    job = {
        "parent_pid": os.getpid(),
        "stage": "search" if plan else "battery",
        "plan": asdict(plan) if plan else None,
        "base_dir": str(base_dir),
        "device": limits.device,
        "dtype": limits.dtype,
        "probe": asdict(probe),
        "adapters": [asdict(item) for item in items],
        "max_config_bytes": limits.max_config_bytes,
        "max_rank": limits.max_rank,
        "memory_bytes": limits.memory_bytes,
    }
    errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed by its supervisor
    environment = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["USE_HUB_KERNELS"] = "NO"  # compute kernels are code too, and the Hub is where strangers put theirs
    # Threads that spin while they wait starve each other when the cores are shared.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    process = subprocess.Popen(
        [sys.executable, "-m", "scanner.probe.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        encoding="utf-8",
        env=environment,
        start_new_session=True,
    )
    assert process.stdin and process.stdout
    lines: queue.Queue[str | None] = queue.Queue()

    def pump(stream: IO[str]) -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=pump, args=(process.stdout,), daemon=True).start()
    try:
        json.dump(job, process.stdin)
        process.stdin.close()
    except BrokenPipeError:
        lines.put(None)  # died before it read its job; its last words say why
    return Child(process, lines, errors)


def next_event(
    child: Child, deadline: float, limits: ProbeLimits, stop: threading.Event
) -> tuple[dict[str, Any] | None, str]:
    """The child's next line, or None with the way it died: `crashed`, `timeout`, `memory`, or `stopped` by `stop`."""
    while not stop.is_set():
        try:
            line = child.lines.get(timeout=POLL_S)
        except queue.Empty:
            if time.monotonic() > deadline:
                child.kill()
                return None, "timeout"
            if (used := own_bytes(child.process.pid)) > limits.memory_bytes:
                child.kill()
                return None, f"memory: {used / 1e9:.2f} GB in use, the limit is {limits.memory_bytes / 1e9:.2f} GB"
            continue
        if line is None:
            child.process.wait()
            return None, f"crashed({child.process.returncode})"
        try:
            return json.loads(line), ""
        except ValueError:
            continue  # half a line: it was killed while it wrote, and the end of the stream follows
    return None, "stopped"

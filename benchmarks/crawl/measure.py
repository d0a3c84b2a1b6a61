"""One crawl of a served folder as a process of its own: its requests, memory and time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scanner.hub.server import HubServer

__all__ = ["CrawlFigures", "crawl"]


@dataclass(frozen=True)
class CrawlFigures:
    """What one crawl took."""

    adapters: int
    requests: int
    """To the Hub and its CDN, redirects counted singly."""
    requests_cdn: int
    by_route: dict[str, int] = field(repr=False)
    statuses: dict[str, int]
    peak_rss_mib: float
    """Largest resident memory of the crawl process; an embedded Prefect server is another process."""
    seconds: float

    @property
    def requests_per_adapter(self) -> float:
        return self.requests / max(1, self.adapters)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"requests_per_adapter": round(self.requests_per_adapter, 4)}


def crawl(hub: HubServer, work: Path, store: Path, **environment: str) -> CrawlFigures:
    """Run `lorascope crawl --probe none` against a hub and read the figures off its request log.

    Raises:
        RuntimeError: the crawl failed (exit code 2).
    """
    hub.request_log.clear()
    env = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(work / "hf"),
        "PREFECT_HOME": str(work / "prefect"),
        "NO_PROXY": "127.0.0.1,localhost",
        **environment,
    }
    for name in ("PREFECT_API_URL", "HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        env.pop(name, None)
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "crawl", "--probe", "none", "--store", str(store)],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = _PeakMemory(process.pid)
    _, errors = process.communicate()
    seconds = time.monotonic() - started
    if process.returncode == 2:
        raise RuntimeError(f"the crawl failed: {errors[-2000:]}")
    log = list(hub.request_log)
    rows = subprocess.run(
        [
            *(sys.executable, "-m", "flows.cli", "sql", "--format", "json", "--store", str(store)),
            "SELECT count(*) AS n FROM current_verdicts",
        ],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    routes = Counter(_route(path) for _, path, _ in log)
    return CrawlFigures(
        adapters=json.loads(rows.stdout)[0]["n"],
        requests=len(log),
        requests_cdn=routes["cdn"],
        by_route=dict(routes.most_common()),
        statuses={str(status): n for status, n in Counter(status for _, _, status in log).most_common()},
        peak_rss_mib=round(peak.stop() / 2**20, 1),
        seconds=round(seconds, 1),
    )


def _route(path: str) -> str:
    if path == "/api/models":
        return "listing"
    for part, name in (
        ("/api/resolve-cache/", "resolve-cache"),
        ("/resolve/", "resolve"),
        ("/tree/", "tree"),
        ("/api/models/", "model info"),
    ):
        if part in path:
            return name
    return "other" if path.startswith("/api/") else "cdn"


class _PeakMemory:
    """Samples the resident memory of one process until told to stop."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._stopped = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stopped.wait(0.05):
            try:
                status = Path(f"/proc/{self._pid}/status").read_text()
            except OSError:
                return
            # The kernel's own high-water mark: no peak falls between two samples.
            line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
            self._peak = max(self._peak, int(line.split()[1]) * 1024)

    def stop(self) -> int:
        """Bytes."""
        self._stopped.set()
        self._thread.join()
        return self._peak

"""`python -m benchmarks.crawl --repos 3000`: requests per adapter, memory, and what the next poll costs."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.crawl.measure import crawl
from benchmarks.crawl.registry import add_repos
from scanner.hub.server import running_hub

RESULTS = Path(__file__).with_name("results") / "crawl.json"
PACKAGES = ("prefect", "huggingface_hub", "duckdb", "pyarrow")


def measure(repos: int) -> dict[str, Any]:
    """A first crawl of so many repos, five more of them, and a second crawl."""
    with tempfile.TemporaryDirectory(prefix="crawl-benchmark-") as name:
        work = Path(name)
        folder, store = work / "registry", work / "store"
        folder.mkdir()
        add_repos(folder, 0, repos, repos)
        with running_hub(folder) as hub:
            first = crawl(hub, work, store, LORASCOPE_FIRST_CRAWL_LIMIT=str(repos))
            add_repos(folder, repos, 5, repos)
            second = crawl(hub, work, store)
    found = {"repos": repos, "first": first.to_json(), "second": second.to_json()}
    print(
        f"{repos} repos: {first.adapters} adapters, {first.requests_per_adapter:.3f} requests per adapter "
        f"({first.requests_cdn / first.adapters:.3f} of them to the CDN), peak {first.peak_rss_mib:.0f} MiB, "
        f"{first.seconds:.0f} s, {first.adapters / first.seconds:.1f} adapters/s",
        flush=True,
    )
    polled = {route: n for route, n in second.by_route.items() if route in ("listing", "model info")}
    print(f"  then 5 new ones: {polled} to find them, {second.requests} requests, {second.seconds:.0f} s", flush=True)
    return found


def main() -> None:
    """Measure the full size, a tenth of it, and a hundred."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repos", type=int, default=3000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    sizes = sorted({100, args.repos // 10, args.repos})
    runs = [measure(size) for size in sizes]
    peaks = [run["first"]["peak_rss_mib"] for run in runs]
    print(f"peak memory for {sizes[-1]} repos: {peaks[-1] / peaks[-2]:.2f} times that for {sizes[-2]}")
    polls = [(run["second"]["by_route"].get("listing"), run["second"]["by_route"].get("model info", 0)) for run in runs]
    print(f"requests of the second poll (listing, model info) for {sizes}: {polls}")
    report = {
        "command": f"python -m benchmarks.crawl --repos {args.repos}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} x {platform.machine()} cores, Python {platform.python_version()}",
        "versions": {package: version(package) for package in PACKAGES},
        "runs": runs,
    }
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""`lorascope demo`: the whole pipeline on the bundled hub, with an embedded Prefect server and a fresh store."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack

from rich.console import Console

from flows.bundle import bundled
from scanner.scratch import scratch_folder

__all__ = ["run_demo"]

BATTERY = "V"
"""The study's: a third of the default's strings, and so of its time."""


def run_demo(store: str | None, texts_limit: int) -> int:
    """Serve the hub on a free port, crawl it with every adapter probed, print the verdict table."""
    started = time.monotonic()
    err, out = Console(stderr=True), Console(width=None if sys.stdout.isatty() else 180)
    with ExitStack() as stack:
        work = stack.enter_context(scratch_folder("demo"))
        # Everything of the demo stays in its own folder: the Hub cache, Prefect's database, the store.
        os.environ["HF_HOME"] = str(work / "hf")
        os.environ["PREFECT_HOME"] = str(work / "prefect")
        for foreign in ("PREFECT_API_URL", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
            os.environ.pop(foreign, None)
        local = [os.environ.get("NO_PROXY", ""), "127.0.0.1", "localhost"]
        os.environ["NO_PROXY"] = ",".join(filter(None, local))

        from scanner.hub.server import running_hub

        served = stack.enter_context(running_hub(bundled("demo_hub", "examples/demo_hub")))
        os.environ["HF_ENDPOINT"] = served.endpoint
        err.print(f"bundled hub on {served.endpoint}; starting the embedded Prefect server", highlight=False)

        from flows.commands import crawl_summary
        from flows.show import show_verdicts, verdict_rows

        uri = store or str(work / "store")
        summary = crawl_summary(store=uri, probe="all", battery=BATTERY, texts_limit=texts_limit)
        show_verdicts(base=None, verdict=None, store=uri, output="table", console=out)
        err.print(
            f"\n{len(verdict_rows(uri)[1])} adapters in {time.monotonic() - started:.0f} s: "
            + ", ".join(f"{count} {verdict}" for verdict, count in sorted(summary["verdicts"].items())),
            highlight=False,
        )
        if store:
            err.print(f'the store is kept: lorascope sql --store {store} "SELECT * FROM base_models"', highlight=False)
    return 0

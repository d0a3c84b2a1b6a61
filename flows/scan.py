"""Scans on demand as a flow: the same function as the `scan` command."""

from __future__ import annotations

from typing import Any

from prefect import flow

from scanner.pipeline.scan import scan_targets
from scanner.probe import probe_for
from scanner.settings import DEFAULT_BATTERY, Settings, default_store_uri

__all__ = ["scan"]


@flow(name="scan", log_prints=False, persist_result=False)
def scan(
    targets: list[str],
    probe: str = "auto",
    battery: str = DEFAULT_BATTERY,
    texts: str | None = None,
    store: str | None = None,
    features: str | None = None,
    reading: str | None = None,
    policy: str | None = None,
) -> dict[str, Any]:
    """Scan repos (`owner/name`, `owner/name@revision`) or folders of the worker's machine.

    Returns:
        {"verdicts": {adapter id: verdict}}; the results are in the store.
    """
    settings = Settings(features=features, reading=reading, policy=policy)
    results = scan_targets(
        targets,
        store_uri=store or default_store_uri(),
        probe=probe_for(settings, battery, texts),
        mode=probe,
        settings=settings,
    )
    return {"verdicts": {result.record.info.adapter_id: str(result.verdict["verdict"]) for result in results}}

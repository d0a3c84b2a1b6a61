"""`calibrate` as a flow: the same library function that the command calls."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow

from scanner.pipeline.calibrate import calibrate as calibrate_store
from scanner.policy_file import load_policy
from scanner.settings import Settings, default_store_uri
from scanner.store import open_root, utc_now

__all__ = ["calibrate"]


@flow(name="calibrate", log_prints=False, persist_result=False)
def calibrate(base: str | None = None, store: str | None = None, policy: str | None = None) -> dict[str, Any]:
    """Build and freeze references from the store, and judge history again.

    Args:
        base: only this base model.
        store: store URI; default `LORASCOPE_STORE`.
        policy: TOML file with thresholds; default `LORASCOPE_POLICY`, else the shipped ones.

    Returns:
        Counts: n_judged, n_written, references, changes (from -> to).
    """
    thresholds = load_policy(Settings(policy=policy).policy)
    result = calibrate_store(open_root(store or default_store_uri()), utc_now(), thresholds, base)
    return {
        "run_id": result.run_id,
        "n_judged": result.n_judged,
        "n_written": result.n_written,
        "references": len(result.references),
        "changes": [asdict(change) for change in result.changes],
    }

"""Stage 7: append the records of one shard."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import PurePosixPath

from scanner.model import UNRESOLVED, Outcome, ScanRecord
from scanner.rules import RULES_VERSION
from scanner.store import StoreRoot, append_shard, row_id_of, shard_id_of
from scanner.store.rows import record_rows
from scanner.weights import FEATURE_VERSION, SKETCH_VERSION

__all__ = ["append_records", "may_add_to", "run_suffix"]

_SCANNED = "scanned"
"""Shards of scans on demand are called so, those of crawls `shard`: their names alone tell them apart."""


def may_add_to(root: StoreRoot, records: Sequence[ScanRecord]) -> bool:
    """Whether the store may know something that matters for the verdicts of records and is not in the records.

    That is an earlier probe of the same adapter, which counts where there is none now or it failed, or siblings, which
    come from crawls only and are looked for among adapters that were read and whose base is known. The names of the
    files answer it: where there is no file of probes, and none of a crawl (or none that could give siblings to
    anybody), the answer is certainly no.

    Raises:
        StoreError: the store cannot be listed.
    """
    if root.list_parquet("probe_scans"):
        return True
    comparable = any(r.outcome == Outcome.PASS and r.info.base_model != UNRESOLVED for r in records)
    return comparable and any(
        not PurePosixPath(path).name.startswith(f"{_SCANNED}-") for path in root.list_parquet("adapters")
    )


def run_suffix(crawl_id: str) -> str:
    """How the names of all shards end that a crawl or scan appends."""
    return hashlib.sha256(crawl_id.encode()).hexdigest()[:8]


def append_records(
    root: StoreRoot,
    records: Sequence[ScanRecord],
    *,
    crawl_id: str,
    base_model: str,
    probe_id: str,
    scanned_at: datetime,
) -> dict[str, int]:
    """Write the fact rows of a shard and its commit marker; rows written per table.

    The shard's name follows from its members, the detectors' versions, the probe's id and the run. A retry writes the
    same files; another run never writes into them, so that a shard stays whole when one of two runs at once is killed
    half-way. What another run has committed since this one began is not appended again: {} is returned.

    Raises:
        StoreError: the store cannot be written.
    """
    detectors = sorted({record.info.detectors for record in records})
    versions = {
        "rules": RULES_VERSION,
        "weights": FEATURE_VERSION,
        "sketch": SKETCH_VERSION,
        "detectors": ",".join(detectors),
        "probe": probe_id,
    }
    is_on_demand = crawl_id.startswith("scan-")
    if is_on_demand or any(record.is_unfinished for record in records):
        # Looked at again on purpose: another look is another file, and failed tries can be counted.
        versions["run"] = crawl_id
    work = shard_id_of(_SCANNED if is_on_demand else "shard", [record.info.adapter_id for record in records], versions)
    shard_id = f"{work}-{run_suffix(crawl_id)}"
    repos = {record.info.repo.repo_uid for record in records}
    marker = {
        "row_id": row_id_of("runs", shard_id, crawl_id),
        "run_id": shard_id,
        "kind": "shard",
        "crawl_id": crawl_id,
        "source": records[0].info.repo.source if records else "",
        "base_model": base_model,
        "finished_at": scanned_at,
        "n_repos": len(repos),
        "n_adapters": len(records),
    }
    with root.exclusive():
        if root.has_newer("runs", f"{work}-", scanned_at):
            return {}
        return append_shard(root, shard_id, record_rows(records), marker, scanned_at)

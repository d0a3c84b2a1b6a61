"""Scan on demand: targets in, results out, everything appended to the store. No Prefect."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from scanner.errors import LorascopeError, UsageError
from scanner.hub.base_model import BaseShelf
from scanner.hub.names import hub_id
from scanner.hub.resolve import BaseResolver
from scanner.hub.sources import FolderFiles, HubFiles, RepoFiles, folder_ref
from scanner.model import BaseResolution, Outcome, RepoRef, ScanRecord
from scanner.pipeline.append import append_records
from scanner.pipeline.bases import Bases
from scanner.pipeline.behave import probe_group
from scanner.pipeline.choose import choose_for_probe, with_inclusion
from scanner.pipeline.collect import collect_hub_repo, collect_repo
from scanner.pipeline.hunt import SearchBudget, choose_for_search, contents_searched, search_group
from scanner.pipeline.judge import judge_records
from scanner.pipeline.outcomes import failed_record
from scanner.pipeline.relate import relate_scan
from scanner.policy_file import load_policy
from scanner.probe import Probe, SearchPlan, plan_for, plans_id
from scanner.scratch import scratch_folder
from scanner.settings import Settings, hub_endpoint
from scanner.store import (
    Row,
    StoreRoot,
    append_shard,
    base_rows,
    open_database,
    open_root,
    remembered_bases,
    row_id_of,
    utc_now,
)

if TYPE_CHECKING:
    from scanner.hub.client import HubClient
    from scanner.pipeline.explain import Explanation

__all__ = ["ScanResult", "scan_targets"]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ScanResult:
    """One adapter's record with its verdict row."""

    record: ScanRecord
    verdict: Row
    explanation: Explanation | None = None
    """Where it was asked for and the weights were read."""


def scan_targets(
    targets: Sequence[str],
    *,
    store_uri: str,
    probe: Probe,
    mode: str,
    settings: Settings,
    progress: Progress = lambda _: None,
    explain: bool = False,
    plan: SearchPlan | None = None,
) -> list[ScanResult]:
    """Scan repo ids (`owner/name`, `owner/name@revision`) and folders; at least one result per target.

    Args:
        targets: an existing path is a folder, anything else a repo id.
        store_uri: where the results are appended.
        probe: what the behaviour stage asks.
        mode: `none`, `auto` or `all`.
        settings: limits.
        progress: gets a line per step.
        explain: with the strongest modules of each adapter, and the tokens that they push.
        plan: how hard to look for triggers; default what suits each base.

    Raises:
        UsageError: a target that is neither an existing path nor can be a repo id.
        StopError: the store cannot be written.
    """
    root, policy = open_root(store_uri), load_policy(settings.policy)
    now = utc_now()
    scan_id = f"scan-{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
    for target in targets:
        _check_target(target)

    @cache
    def client() -> HubClient:
        from scanner.hub.client import HubClient

        return HubClient(settings)

    with scratch_folder("scan") as work:
        shelf = BaseShelf(work / "bases", client)
        resolver = BaseResolver(work / "names", client, settings.max_base_lookups)
        if not all(_exists(target) for target in targets):
            resolver.remember(_remembered(root, now, settings))
        bases = Bases(resolver, settings.max_config_bytes)

        def files(record: ScanRecord) -> RepoFiles:
            return HubFiles(client(), record.info.repo, work / "downloads")

        records: list[ScanRecord] = []
        for target in targets:
            progress(f"reading {target}")
            records.extend(_collect_target(target, client, work, settings, bases))
        done: dict[str, ScanRecord] = {}
        explanations: dict[str, Explanation] = {}
        groups = _by_base(_unique(records))
        budget = SearchBudget(settings.search_budget, sum(len(group) for _, group in groups))
        for base_model, group in groups:
            choices = choose_for_probe(group, mode, settings, salt=scan_id)
            chosen = {adapter_id: choice.why for adapter_id, choice in choices.items()}
            if chosen:
                progress(f"probing {len(chosen)} adapters of {base_model}")
            probed = probe_group(
                base_model, group, chosen, shelf, files, probe, settings, lambda *_: progress("probed one")
            )
            probed = with_inclusion(probed, choices)
            hunted = choose_for_search(probed, settings.search or mode, budget.share(len(group)), policy, salt=scan_id)
            budget.spend(len(group), contents_searched(probed, hunted))
            if hunted:
                progress(f"searching {len(hunted)} adapters of {base_model}")
            probed = search_group(
                base_model,
                probed,
                hunted,
                shelf,
                files,
                probe,
                plan or plan_for(base_model),
                settings,
                lambda *_: progress("searched one"),
            )
            append_records(
                root,
                probed,
                crawl_id=scan_id,
                base_model=base_model,
                probe_id=f"{mode}/{probe.identity}/{plans_id(plan)}",
                scanned_at=now,
            )
            done.update({record.info.adapter_id: record for record in probed})
            if explain:
                from scanner.pipeline.explain import explain_weights

                explanations.update(explain_weights(probed, settings))
        _relate(root, list(done.values()), scan_id, settings, progress)
        names = base_rows(resolver.resolved(), source=f"hub:{hub_endpoint()}", crawl_id=scan_id, resolved_at=utc_now())
    verdicts = judge_records(root, list(done.values()), scan_id, now, policy, utc_now())
    run = {
        "row_id": row_id_of("runs", scan_id),
        "run_id": scan_id,
        "kind": "scan",
        "crawl_id": scan_id,
        "finished_at": utc_now(),
        "n_repos": len(targets),
        "n_adapters": len(done),
    }
    append_shard(root, scan_id, {"base_resolutions": names, "runs": [run]}, None, now)
    by_id = {row["adapter_id"]: row for row in verdicts}
    results = []
    for asked in records:
        adapter_id = asked.info.adapter_id
        record = _for_target(done[adapter_id], asked.info.repo)
        results.append(ScanResult(record, by_id[adapter_id], explanations.get(adapter_id)))
    return results


def _relate(
    root: StoreRoot, records: Sequence[ScanRecord], scan_id: str, settings: Settings, progress: Progress
) -> None:
    """Copies and merges among what was scanned and the store; where this fails, near-copies vote one by one."""
    try:
        related = relate_scan(root, records, scan_id, utc_now(), settings)
    except Exception as error:  # noqa: BLE001 - said aloud, and made up for by the next run
        progress(f"relations to other adapters are not known: {type(error).__name__}: {error}")
    else:
        if related.kinds:
            progress("relations to other adapters: " + ", ".join(f"{n} {kind}" for kind, n in related.kinds.items()))


def _remembered(root: StoreRoot, now: datetime, settings: Settings) -> list[BaseResolution]:
    if not root.list_parquet("base_resolutions"):
        return []
    database = open_database(root)
    try:
        source = f"hub:{hub_endpoint()}"
        return remembered_bases(database, source, now, settings.base_memory_s, settings.recheck_after_s)
    finally:
        database.close()


def _for_target(record: ScanRecord, repo: RepoRef) -> ScanRecord:
    """The same adapter under the name that this target gave it: two targets may lead to one adapter."""
    return replace(record, info=replace(record.info, repo=repo))


def _exists(target: str) -> bool:
    try:
        return Path(target).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long, an unknown ~user, a NUL
        return False


def _check_target(target: str) -> None:
    if _exists(target):
        return
    name, _, revision = target.partition("@")
    if hub_id(name) is None or (not revision and target.endswith("@")):
        raise UsageError(f"{target!r} is neither an existing folder nor a repo id (owner/name or owner/name@revision)")


def _collect_target(
    target: str, client: Callable[[], HubClient], work: Path, settings: Settings, bases: Bases
) -> list[ScanRecord]:
    if _exists(target):  # asks nobody: a folder's base is the id that its config names
        return collect_repo(
            folder_ref(target), FolderFiles(Path(target).expanduser(), settings.max_files_per_repo), settings
        )
    name, _, revision = target.partition("@")
    try:
        repo = bases.resolved(client().repo(name, revision or None))
        return collect_hub_repo(client(), repo, work / "downloads", settings, bases=bases)
    except LorascopeError as error:
        # Its neighbours may be folders, or repos in the cache: an unreadable target is a result, not the end.
        unseen = RepoRef(
            source=f"hub:{hub_endpoint()}",
            repo_id=name,
            repo_uid=f"name:{name}",
            commit_sha=None,
            owner=name.split("/")[0] if "/" in name else None,
            target=target,
        )
        return [failed_record(unseen, Outcome.ERROR, error.code, error.message)]


def _unique(records: Sequence[ScanRecord]) -> list[ScanRecord]:
    """An adapter that two targets lead to is probed and stored once."""
    return list({record.info.adapter_id: record for record in records}.values())


def _by_base(records: Sequence[ScanRecord]) -> list[tuple[str, list[ScanRecord]]]:
    groups: dict[str, list[ScanRecord]] = defaultdict(list)
    for record in records:
        groups[record.info.base_model].append(record)
    return sorted(groups.items())

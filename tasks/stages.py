"""The pipeline's stages as tasks. Each reads and writes the workspace and returns a receipt of counts and paths."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from scanner.errors import ProbeCrashedError
from scanner.hub.base_model import BaseShelf
from scanner.hub.client import HubClient
from scanner.hub.poll import parse_time, poll_hub
from scanner.hub.resolve import BaseResolver
from scanner.hub.sources import HubFiles
from scanner.model import LABEL_WORDS, PROBE_DEATHS, Outcome, ProbeReport, ScanRecord, SearchReport
from scanner.pipeline.append import append_records
from scanner.pipeline.bases import Bases
from scanner.pipeline.behave import probe_group, with_report
from scanner.pipeline.choose import Choice, choose_for_probe, with_inclusion
from scanner.pipeline.collect import collect_hub_repo, detectors_of
from scanner.pipeline.hunt import choose_for_search, contents_searched, is_open, search_group, with_search
from scanner.pipeline.judge import judge_adapters, pending_adapters
from scanner.pipeline.judgement import flags_by_chance
from scanner.pipeline.relate import relate_new
from scanner.policy_file import load_policy
from scanner.probe import Probe, plan_for, plans_id, probe_for
from scanner.settings import Settings
from scanner.store import (
    CrawlMemory,
    append_shard,
    base_rows,
    event_rows,
    last_watermark,
    open_database,
    open_root,
    remembered_bases,
    row_id_of,
    utc_now,
    write_content_index,
)
from tasks.earlier import EarlierScans
from tasks.policies import attempts_left, batch_task
from tasks.progress import report
from tasks.workspace import Workspace

__all__ = [
    "append_batch",
    "collect_batch",
    "judge_crawl",
    "poll_new_repos",
    "probe_base_group",
    "record_crawl",
    "relate_crawl",
    "resolve_bases",
]

MAX_BATCHES = 4
"""Batches of a shard share its disk space: a shard has at most two, run side by side."""


@batch_task("poll-hub")
def poll_new_repos(
    work: str, endpoint: str, store: str, *, limit: int | None, base: str | None, since: str | None, features: str
) -> dict[str, Any]:
    """List what is new; the repos go into the workspace."""
    workspace = Workspace.at(work)
    settings = Settings(features=features)
    client = HubClient(settings, endpoint)
    database = open_database(open_root(store))
    try:
        write_content_index(database, detectors_of(settings), workspace.content_index)
        poll = poll_hub(
            client,
            CrawlMemory(database, f"hub:{endpoint}"),
            watermark=last_watermark(database, endpoint, base),
            since=parse_time(since) if since else None,
            limit=limit,
            base=base,
        )
    finally:
        database.close()
    return {
        "repos": workspace.write_repos("new", list(poll.repos)),
        "events": workspace.write_events(poll.events),
        "n_new": len(poll.repos),
        "n_listed": poll.n_listed,
        "n_left": poll.n_left,
        "watermark": poll.watermark.isoformat() if poll.watermark else None,
    }


@batch_task("resolve-bases")
def resolve_bases(work: str, endpoint: str, store: str, repos: str) -> dict[str, Any]:
    """Follow the base models that the polled repos claim to their roots, those that the most repos claim first."""
    settings, now = Settings(), utc_now()
    workspace = Workspace.at(work)
    found = workspace.read_repos(repos)
    if not found:
        return {"repos": repos, "n_claimed": 0, "n_roots": 0}
    database = open_database(open_root(store))
    try:
        before = remembered_bases(database, f"hub:{endpoint}", now, settings.base_memory_s, settings.recheck_after_s)
    finally:
        database.close()
    resolver = _resolver(workspace, endpoint, settings)
    resolver.remember(before)
    bases = Bases(resolver, settings.max_config_bytes)
    by_claim: dict[str, list[int]] = defaultdict(list)
    for number, repo in enumerate(found):
        by_claim[repo.base_model].append(number)
    report("resolving base models", total=len(by_claim))
    for numbers in sorted(by_claim.values(), key=lambda numbers: (-len(numbers), numbers)):
        for number in numbers:
            found[number] = bases.resolved(found[number])
        report("resolving base models", done=1)
    return {
        "repos": workspace.write_repos("grouped", found),
        "n_claimed": len(by_claim),
        "n_roots": len({repo.base_model for repo in found}),
    }


def _resolver(workspace: Workspace, endpoint: str, settings: Settings) -> BaseResolver:
    return BaseResolver(workspace.base_names, lambda: HubClient(settings, endpoint), settings.max_base_lookups)


@batch_task("collect-batch")
def collect_batch(
    work: str, endpoint: str, store: str, shard: str, name: str, repos: str, *, keep_weights: bool, features: str
) -> dict[str, Any]:
    """Stages 1-3 for a batch of repos. Weights stay on disk for the probe where there will be one."""
    settings = Settings(features=features)
    client = HubClient(settings, endpoint)
    workspace = Workspace.at(work)
    folder = workspace.downloads(shard, name)
    bases = Bases(_resolver(workspace, endpoint, settings), settings.max_config_bytes)
    records: list[ScanRecord] = []
    kept_bytes = 0
    with EarlierScans(workspace, store, detectors_of(settings)) as earlier:
        for repo in workspace.read_repos(repos):
            for record in collect_hub_repo(client, repo, folder, settings, earlier.find, bases):
                workspace.write_scanned(record)
                size = record.info.size_bytes if record.local_path else 0
                fits = kept_bytes + size <= settings.max_shard_bytes / MAX_BATCHES
                if not (keep_weights and record.info.can_be_asked and fits):
                    record = _without_files(record, records)
                    size = 0
                kept_bytes += size
                records.append(record)
            report("scanning weights", done=1)
    return {
        "records": workspace.write_records(name, records),
        "n_adapters": len(records),
        "outcomes": Counter(str(record.outcome) for record in records),
    }


def _without_files(record: ScanRecord, others: Sequence[ScanRecord]) -> ScanRecord:
    """A record whose weights are off the disk, unless another record needs the same ones."""
    if record.local_path and all(other.local_path != record.local_path for other in others):
        Path(record.local_path).unlink(missing_ok=True)
    return replace(record, local_path=None)


@batch_task("probe-base-group")
def probe_base_group(
    work: str,
    endpoint: str,
    store: str,
    crawl_id: str,
    shard: str,
    records: list[str],
    *,
    mode: str,
    battery: str,
    texts: str | None,
    texts_limit: int | None,
    reading: str,
    search_budget: int,
    policy: str,
) -> dict[str, Any]:
    """Stages 4 to 6: the battery, then the trigger search on what it leaves open (in `auto`, of at most `search_budget`
    contents); the base is loaded once for each. A retry asks only what crashed.

    A shard is grouped by what the listing says; an adapter's own config may know better.
    """
    settings = Settings(reading=reading, policy=policy)
    workspace = Workspace.at(work)
    group = [record for path in records for record in workspace.read_records(path)]
    probe = probe_for(settings, battery, texts, texts_limit)
    by_base: dict[str, list[ScanRecord]] = defaultdict(list)
    for record in group:
        by_base[record.info.base_model].append(record)
    choices: dict[str, Choice] = {}
    saved: dict[str, ProbeReport] = {}
    with EarlierScans(workspace, store, detectors_of(settings)) as earlier:
        for of_base in by_base.values():
            owners = earlier.owners(of_base) if len(of_base) > settings.probe_budget else None
            choices |= choose_for_probe(of_base, mode, settings, crawl_id, owners)
        chosen = {adapter_id: choice.why for adapter_id, choice in choices.items()}
        for record in group:
            if record.info.adapter_id in chosen:
                before = earlier.probe_of(record, probe.ids_for(record.info.task_profile or LABEL_WORDS))
                if before is not None and not _worth_retrying(before):
                    saved[record.info.adapter_id] = replace(before, selected_by=chosen[record.info.adapter_id])
    todo = {adapter_id: why for adapter_id, why in chosen.items() if adapter_id not in saved}
    report("probing", total=len(todo))

    def keep(adapter_id: str, result: ProbeReport) -> None:
        workspace.write_report(adapter_id, result)
        report("probing", done=1)

    def files(record: ScanRecord) -> HubFiles:
        return HubFiles(HubClient(settings, endpoint), record.info.repo, workspace.downloads(shard))

    shelf = BaseShelf(workspace.bases, lambda: HubClient(settings, endpoint))
    probed: list[ScanRecord] = []
    for base_model, members in sorted(by_base.items()):
        probed += probe_group(base_model, members, todo, shelf, files, probe, settings, keep)
    crashed = [r for r in probed if r.probe is not None and _worth_retrying(r.probe)]
    if crashed and attempts_left():
        raise ProbeCrashedError(f"{len(crashed)} of {len(todo)} probes died; trying those again")
    probed = with_inclusion([with_report(r, saved.get(r.info.adapter_id)) for r in probed], choices)
    searched, n_charged = _searched(
        probed, workspace, store, shelf, files, probe, settings, mode, search_budget, crawl_id
    )
    name = Path(records[0]).name.split(".")[0]
    return {
        "records": workspace.write_records(f"{name}-probed", searched),
        "n_probed": len(chosen),
        "n_searched": sum(r.search is not None for r in searched),
        "n_charged": n_charged,
        "probe_id": f"{mode}/{probe.identity}/{plans_id()}",
        "outcomes": Counter(str(r.probe.outcome) for r in searched if r.probe),
    }


def _searched(
    probed: list[ScanRecord],
    workspace: Workspace,
    store: str,
    shelf: BaseShelf,
    files: Callable[[ScanRecord], HubFiles],
    probe: Probe,
    settings: Settings,
    mode: str,
    budget: int,
    salt: str,
) -> tuple[list[ScanRecord], int]:
    """(Records with their trigger searches: of an earlier try, of the adapter that they are a copy of, or new ones;
    how much of the budget was spent)."""
    if mode == "none":
        return probed, 0
    policy = load_policy(settings.policy)
    saved: dict[str, SearchReport] = {}
    with EarlierScans(workspace, store, detectors_of(settings)) as earlier:
        for record in probed:
            if is_open(record, policy):
                profile = record.info.task_profile or LABEL_WORDS
                plan_id = plan_for(record.info.base_model).id_for(profile)
                before = earlier.search_of(record, plan_id, probe.ids_for(profile))
                if before is not None and not _has_crashed(before):
                    saved[record.info.adapter_id] = before
    by_base: dict[str, list[ScanRecord]] = defaultdict(list)
    for record in probed:
        by_base[record.info.base_model].append(record)
    chosen: dict[str, str] = {}
    # What an earlier try of this task has searched is part of its budget, and a retry draws the same ones again.
    known = [adapter_id for adapter_id in saved if workspace.read_search(adapter_id) is None]
    n_charged = 0
    for members in by_base.values():
        picked = choose_for_search(members, settings.search or mode, budget - n_charged, policy, salt, known)
        n_charged += contents_searched(members, picked)
        chosen |= picked
    todo = {adapter_id: why for adapter_id, why in chosen.items() if adapter_id not in saved}
    if todo:
        report("searching", total=len(todo))

    def keep(adapter_id: str, result: SearchReport) -> None:
        workspace.write_search(adapter_id, result)
        report("searching", done=1)

    searched: list[ScanRecord] = []
    for base_model, members in sorted(by_base.items()):
        plan = plan_for(base_model)
        searched += search_group(base_model, members, todo, shelf, files, probe, plan, settings, keep)
    crashed = [r for r in searched if r.search is not None and _has_crashed(r.search)]
    if crashed and attempts_left():
        raise ProbeCrashedError(f"{len(crashed)} of {len(todo)} searches died; trying those again")
    return [with_search(r, saved.get(r.info.adapter_id)) for r in searched], n_charged


def _worth_retrying(result: ProbeReport) -> bool:
    return result.outcome == Outcome.ERROR and result.reason.startswith((*PROBE_DEATHS, "base_crashed"))


def _has_crashed(result: SearchReport) -> bool:
    """Not where it ran out of time or memory: that is left to the next crawls, because a search takes so long."""
    return result.outcome == Outcome.ERROR and result.reason.startswith(("crashed", "base_crashed"))


@batch_task("append-shard")
def append_batch(
    records: str, store: str, *, crawl_id: str, base_model: str, probe_id: str, scanned_at: str
) -> dict[str, int]:
    """Stage 7: rows written per table."""
    return append_records(
        open_root(store),
        Workspace.read_records(records),
        crawl_id=crawl_id,
        base_model=base_model,
        probe_id=probe_id,
        scanned_at=datetime.fromisoformat(scanned_at),
    )


@batch_task("judge-crawl")
def judge_crawl(store: str, endpoint: str, crawl_id: str, policy: str) -> dict[str, Any]:
    """Stage 8 for everything of this Hub that has facts and no verdict: counts by verdict in `verdicts`, and how many
    adapters to expect to stand out by chance."""
    root, thresholds = open_root(store), load_policy(policy)
    with root.exclusive():  # of two crawls at once, one judges
        database = open_database(root)
        try:
            pending = pending_adapters(database, f"hub:{endpoint}")
        finally:
            database.close()
        rows = judge_adapters(root, pending, crawl_id, thresholds, utc_now())
    return {"verdicts": dict(Counter(str(row["verdict"]) for row in rows)), **flags_by_chance(rows, thresholds)}


@batch_task("relate-crawl")
def relate_crawl(store: str, crawl_id: str) -> dict[str, Any]:
    """Copies, near-duplicates and merges among what is new and the store; counts by kind."""
    related = relate_new(open_root(store), crawl_id, utc_now())
    return {"n_new": related.n_new, "relations": dict(related.kinds or {}), "n_left": related.n_left}


@batch_task("record-crawl")
def record_crawl(
    work: str,
    store: str,
    endpoint: str,
    crawl_id: str,
    polled: dict[str, Any],
    summary: dict[str, Any],
    *,
    base: str | None,
    started_at: str,
) -> None:
    """The crawl's own rows, written last: `runs` and `hub_status` with the watermark."""
    now = utc_now()
    settings = Settings()
    budget = HubClient(settings, endpoint).budget
    resolved = _resolver(Workspace.at(work), endpoint, settings).resolved()
    status = {
        "row_id": row_id_of("hub_status", crawl_id),
        "endpoint": endpoint,
        "crawl_id": crawl_id,
        "watermark": datetime.fromisoformat(polled["watermark"]) if polled["watermark"] else None,
        "n_listed": polled["n_listed"],
        "n_new": polled["n_new"],
        "n_left": polled["n_left"],
        "requests": budget.requests,
        "rate_remaining": budget.remaining(),
        "base_model": base,
    }
    events = event_rows(Workspace.read_events(polled["events"]), crawl_id, now)
    run = {
        "row_id": row_id_of("runs", crawl_id),
        "run_id": crawl_id,
        "kind": "crawl",
        "crawl_id": crawl_id,
        "source": f"hub:{endpoint}",
        "finished_at": now,
        "n_repos": polled["n_new"],
        "n_adapters": summary["n_adapters"],
        "detail": json.dumps(summary),
    }
    bases = base_rows(resolved, source=f"hub:{endpoint}", crawl_id=crawl_id, resolved_at=now)
    rows = {"hub_status": [status], "repo_events": events, "base_resolutions": bases}
    append_shard(open_root(store), crawl_id, rows, run, datetime.fromisoformat(started_at))

"""The crawl: poll, resolve base models, shard by them, scan every shard, judge together, move the watermark."""

from __future__ import annotations

import secrets
from collections import defaultdict
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.task_runners import ThreadPoolTaskRunner

from scanner.errors import StopError
from scanner.model import RepoRef
from scanner.pipeline.hunt import SearchBudget
from scanner.policy_file import load_policy
from scanner.settings import DEFAULT_BATTERY, Settings, default_store_uri, hub_endpoint
from scanner.store import utc_now
from tasks.progress import report
from tasks.stages import (
    append_batch,
    collect_batch,
    judge_crawl,
    poll_new_repos,
    probe_base_group,
    record_crawl,
    relate_crawl,
    resolve_bases,
)
from tasks.workspace import Workspace, temporary_workspace

__all__ = ["by_chance", "crawl", "scan_shard"]

COLLECT_THREADS = 2
COLLECT_BATCH = 50


@flow(name="crawl", log_prints=False, persist_result=False)
def crawl(
    limit: int | None = None,
    base: str | None = None,
    since: str | None = None,
    probe: str = "auto",
    battery: str = DEFAULT_BATTERY,
    texts: str | None = None,
    texts_limit: int | None = None,
    store: str | None = None,
    endpoint: str | None = None,
    features: str | None = None,
    reading: str | None = None,
    policy: str | None = None,
) -> dict[str, Any]:
    """Crawl one Hub from the stored watermark.

    Args:
        limit: at most so many repos, the oldest first.
        base: only adapters of this base model.
        since: begin here (ISO 8601) instead of at the watermark.
        probe: `auto`, `all` or `none`.
        battery: name of the battery.
        texts: JSON-lines file with the user's texts.
        texts_limit: texts per prefix.
        store: store URI; default `LORASCOPE_STORE`.
        endpoint: Hub endpoint; default `HF_ENDPOINT`.
        features: weight features, `default` or `full`; default `LORASCOPE_FEATURES`.
        reading: of label words, `scored` or `generated`; default `LORASCOPE_READING`.
        policy: TOML file with thresholds; default `LORASCOPE_POLICY`, else the shipped ones.

    Returns:
        Counts: n_new, n_listed, n_left, n_adapters, n_searched, n_failed_shards, verdicts, relations (None: they
        failed), weight_, search_ and battery_flags_to_expect_by_chance.

    Raises:
        StopError: the Hub or the store cannot be reached.
    """
    settings = Settings(features=features, reading=reading, policy=policy)
    load_policy(settings.policy)  # what is wrong with it shows before anything is scanned
    store, endpoint = store or default_store_uri(), (endpoint or hub_endpoint()).rstrip("/")
    started = utc_now()
    crawl_id = f"crawl-{started:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
    with temporary_workspace() as workspace:
        work = str(workspace.root)
        polled = poll_new_repos(work, endpoint, store, limit=limit, base=base, since=since, features=settings.features)
        grouped = resolve_bases(work, endpoint, store, polled["repos"])
        n_adapters = n_searched = n_failed = 0
        listed = workspace.read_repos(grouped["repos"])
        budget = SearchBudget(settings.search_budget, len(listed))
        for number, (base_model, repos) in enumerate(_shards(listed, settings)):
            share = budget.share(len(repos))
            receipt = scan_shard(
                work=work,
                endpoint=endpoint,
                store=store,
                crawl_id=crawl_id,
                shard=f"shard{number}",
                base_model=base_model,
                repos=workspace.write_repos(f"shard{number}", repos),
                probe=probe,
                battery=battery,
                texts=texts,
                texts_limit=texts_limit,
                features=settings.features,
                reading=settings.reading,
                search_budget=share,
                policy=settings.policy,
                scanned_at=started.isoformat(),
                return_state=True,
            )
            if receipt.is_completed():
                n_adapters += receipt.result()["n_adapters"]
                n_searched += receipt.result()["n_searched"]
                share = receipt.result()["n_charged"]
            else:
                # A failed shard costs only itself, unless the Hub or the store is gone. What it would have scanned
                # stays unknown to the store, and the watermark stays behind it.
                _raise_if_stop(receipt)
                n_failed += 1
            budget.spend(len(repos), share)
        if n_failed:
            polled = {**polled, "watermark": None}
        # First: copies and near-copies have one vote in the references that judge.
        related = relate_crawl(store, crawl_id, return_state=True)
        judged = judge_crawl(store, endpoint, crawl_id, settings.policy)
        summary = {
            "crawl_id": crawl_id,
            "n_new": polled["n_new"],
            "n_listed": polled["n_listed"],
            "n_left": polled["n_left"],
            "n_adapters": n_adapters,
            "n_searched": n_searched,
            "n_failed_shards": n_failed,
            **judged,
            # Where this failed, the next crawl makes up for it; until then near-copies vote one by one.
            "relations": related.result()["relations"] if related.is_completed() else None,
        }
        record_crawl(work, store, endpoint, crawl_id, polled, summary, base=base, started_at=started.isoformat())
    if polled["n_new"]:
        create_markdown_artifact(_markdown(endpoint, summary), key="crawl-summary")
    return summary


def _raise_if_stop(state: Any) -> None:
    error = state.result(raise_on_failure=False)
    if isinstance(error, StopError):
        raise error


def _shards(repos: list[RepoRef], settings: Settings) -> list[tuple[str, list[RepoRef]]]:
    """Repos by base model, in pieces of at most `batch_size`."""
    groups: dict[str, list[RepoRef]] = defaultdict(list)
    for repo in repos:
        groups[repo.base_model].append(repo)
    size = settings.batch_size
    return [
        (base_model, group[start : start + size])
        for base_model, group in sorted(groups.items())
        for start in range(0, len(group), size)
    ]


@flow(
    name="scan-shard",
    flow_run_name="{base_model}-{shard}",
    task_runner=ThreadPoolTaskRunner(max_workers=COLLECT_THREADS),  # type: ignore[arg-type]
    log_prints=False,
    persist_result=False,
)
def scan_shard(
    work: str,
    endpoint: str,
    store: str,
    crawl_id: str,
    shard: str,
    base_model: str,
    repos: str,
    probe: str,
    battery: str,
    texts: str | None,
    texts_limit: int | None,
    features: str,
    reading: str,
    search_budget: int,
    policy: str,
    scanned_at: str,
) -> dict[str, Any]:
    """One base model's repos: collect in batches, probe on one base load, append with a commit marker."""
    workspace = Workspace.at(work)
    todo = workspace.read_repos(repos)
    report("scanning weights", total=len(todo))
    try:
        futures = [
            collect_batch.submit(
                work,
                endpoint,
                store,
                shard,
                f"{shard}-{start}",
                workspace.write_repos(f"{shard}-{start}", todo[start : start + COLLECT_BATCH]),
                keep_weights=probe != "none",
                features=features,
            )
            for start in range(0, len(todo), COLLECT_BATCH)
        ]
        collected = [future.result() for future in futures]
        probed = probe_base_group(
            work,
            endpoint,
            store,
            crawl_id,
            shard,
            [receipt["records"] for receipt in collected],
            mode=probe,
            battery=battery,
            texts=texts,
            texts_limit=texts_limit,
            reading=reading,
            search_budget=search_budget,
            policy=policy,
        )
        written = append_batch(
            probed["records"],
            store,
            crawl_id=crawl_id,
            base_model=base_model,
            probe_id=probed["probe_id"],
            scanned_at=scanned_at,
        )
    finally:
        workspace.drop_downloads(shard)
    return {
        "n_adapters": sum(receipt["n_adapters"] for receipt in collected),
        "n_probed": probed["n_probed"],
        "n_searched": probed["n_searched"],
        "n_charged": probed["n_charged"],
        "rows": written,
    }


def by_chance(summary: dict[str, Any]) -> str:
    """A sentence on the false alarms of the rank p-values."""
    weights, searches, batteries = (
        summary[f"{what}_flags_to_expect_by_chance"] for what in ("weight", "search", "battery")
    )
    of_weights = f"{weights:.1f} by weights" if weights else "weights have too few siblings to judge"
    of_searches = f"{searches:.1f} by search scores" if searches else "no search was judged"
    of_batteries = f", {batteries:.1f} by free answers" if batteries else ""
    return f"to stand out by chance: {of_weights}, {of_searches}{of_batteries}"


def _markdown(endpoint: str, summary: dict[str, Any]) -> str:
    verdicts = "\n".join(f"| {verdict} | {count} |" for verdict, count in sorted(summary["verdicts"].items()))
    return (
        f"# Crawl of {endpoint}\n\n{summary['n_new']} new or changed repos of {summary['n_listed']} listed, "
        f"{summary['n_adapters']} adapters, {summary['n_failed_shards']} failed shards.\n\n"
        f"| verdict | adapters |\n|---|---|\n{verdicts}\n\n{by_chance(summary)}\n"
    )

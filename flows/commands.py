"""What the commands do, behind their options: call the library, print, choose the exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from flows.show import note_missing, wide_console
from scanner.settings import DEFAULT_BATTERY, Settings, default_store_uri

__all__ = [
    "crawl_summary",
    "exit_code",
    "run_calibrate",
    "run_crawl",
    "run_scan",
    "run_store_check",
]


def exit_code(verdicts: Iterable[str]) -> int:
    """0 all clean or nothing, 1 something flagged, 3 anything in between (DESIGN section 4)."""
    found = set(verdicts)
    if "flagged" in found:
        return 1
    return 3 if found - {"clean"} else 0


def _load_numpy() -> None:
    """Import numpy with one thread of OpenBLAS, unless `OPENBLAS_NUM_THREADS` says otherwise.

    OpenBLAS makes its threads when it is loaded; making them costs a tenth of a second of CPU time even where, as in
    the weight scan, none is used. The variable is taken back, because children (torch in the probe) read it, too.
    """
    name = "OPENBLAS_NUM_THREADS"
    if name in os.environ:
        return
    os.environ[name] = "1"
    try:
        import numpy  # noqa: F401
    finally:
        del os.environ[name]


def run_scan(
    targets: Sequence[str],
    *,
    probe: str,
    battery: str,
    texts: str | None,
    features: str | None,
    policy: str | None,
    reading: str | None,
    explain: bool,
    store: str | None,
    output: str,
) -> int:
    """`lorascope scan`: no Prefect anywhere on this path."""
    _load_numpy()
    from scanner.pipeline.scan import scan_targets
    from scanner.probe import probe_for
    from scanner.report import result_object, sarif_document, scan_document, strict_json

    settings = Settings(features=features, reading=reading, policy=policy)
    loaded = probe_for(settings, battery, texts)
    with _status("scanning") as show:
        results = scan_targets(
            targets,
            store_uri=store or default_store_uri(),
            probe=loaded,
            mode=probe,
            settings=settings,
            progress=show,
            explain=explain,
        )
    objects = [result_object(result.record, result.verdict, result.explanation) for result in results]
    if output == "json":
        click.echo(strict_json(scan_document(objects)))
    elif output == "sarif":
        from importlib.metadata import version

        click.echo(strict_json(sarif_document(objects, version("lorascope"))))
    else:
        from scanner.report.tables import print_triggers, print_verdicts

        rows = [
            {
                **result.verdict,
                "max_attack_rate": result.record.probe.max_attack_rate if result.record.probe else None,
                "mean_attack_rate": result.record.probe.mean_attack_rate if result.record.probe else None,
            }
            for result in results
        ]
        print_verdicts(wide_console(), rows)
        print_triggers(wide_console(), [(result.record, result.verdict) for result in results])
        if explain:
            from scanner.report.tables import print_explanations

            print_explanations(wide_console(), [(result.record, result.explanation) for result in results])
    return exit_code(obj["verdict"] for obj in objects)


@contextmanager
def _status(title: str) -> Iterator[Callable[[str], None]]:
    """A line on a terminal that says what is going on; where there is no terminal, nothing is shown or loaded."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.text import Text

    from scanner.report.tables import plain

    with Console(stderr=True).status(title) as status:
        yield lambda line: status.update(Text(plain(line)))


def crawl_summary(**options: Any) -> dict[str, Any]:
    """Run the crawl flow in this process, on the server of PREFECT_API_URL or an embedded one.

    Raises:
        UsageError: a wrong time, battery or texts file, before anything is started.
        HubUnreachableError: likewise, when the Hub cannot be reached.
        StopError: the Prefect server is gone.
    """
    _load_numpy()
    from flows.engine import configure_prefect
    from scanner.hub.client import HubClient
    from scanner.hub.poll import parse_time
    from scanner.policy_file import load_policy
    from scanner.probe import probe_for

    # What the user got wrong shows in a moment, not after the server has started.
    load_policy(Settings(policy=options.get("policy")).policy)
    if options.get("since"):
        parse_time(options["since"])
    probe_for(
        Settings(reading=options.get("reading")), options.get("battery") or DEFAULT_BATTERY, options.get("texts"), 1
    )
    HubClient(Settings()).ping()
    configure_prefect()
    if threading.current_thread() is threading.main_thread():
        # As Ctrl-C: the default would end this process without its embedded server, which then stays.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    import httpx
    from prefect.settings import PREFECT_API_URL

    from flows.crawl import crawl
    from flows.progress import progress_bar
    from scanner.errors import StopError

    try:
        with progress_bar():
            summary: dict[str, Any] = crawl(**options)
    except (httpx.TransportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "Failed to reach API" not in str(error):
            raise
        raise StopError(
            f"the Prefect server {PREFECT_API_URL.value() or '(embedded)'} does not answer any more; "
            "what was appended to the store is kept, and the next crawl goes on from there"
        ) from error
    return summary


def run_crawl(store: str | None, **options: Any) -> int:
    """`lorascope crawl`."""
    summary = crawl_summary(store=store or default_store_uri(), **options)
    counts = ", ".join(f"{n} {verdict}" for verdict, n in sorted(summary["verdicts"].items()))
    left = f"; {summary['n_left']} left for the next crawl" if summary["n_left"] else ""
    failed = (
        f"; {summary['n_failed_shards']} shards failed and will be tried again" if summary["n_failed_shards"] else ""
    )
    from flows.crawl import by_chance

    chance = f"; {by_chance(summary)}" if summary["n_adapters"] else ""
    click.echo(
        f"{summary['n_new']} new or changed repos, {summary['n_adapters']} adapters: "
        f"{counts or 'nothing new'}{left}{failed}{chance}",
        err=True,
    )
    return exit_code(summary["verdicts"]) or (3 if summary["n_failed_shards"] else 0)


def run_calibrate(*, base: str | None, policy: str | None, store: str | None, output: str) -> None:
    """`lorascope calibrate`: from the store alone."""
    from dataclasses import asdict

    from scanner.errors import UsageError
    from scanner.pipeline.calibrate import calibrate
    from scanner.policy_file import load_policy
    from scanner.store import open_root, utc_now

    thresholds = load_policy(Settings(policy=policy).policy)
    root = open_root(store or default_store_uri(), create=False)
    if root.is_local and not Path(root.path).is_dir():
        raise UsageError(f"there is no store at {root.path} yet")
    result = calibrate(root, utc_now(), thresholds, base)
    if base and not result.n_judged:
        click.echo(f"lorascope: no adapter of {base[:200]} has a verdict", err=True)
    if output == "json":
        from scanner.report import strict_json

        click.echo(strict_json(asdict(result)))
        return
    from scanner.report.tables import print_rows

    console = wide_console()
    names = ("base_model", "peft_type", "rank", "scaling", "target_modules", "task", "level")
    lines = [
        (
            *(getattr(line.key, name) for name in names),
            line.n,
            f"needs {line.needs} more" if line.needs else "can judge",
            "" if line.shift is None else f"{line.shift:+.2f}",
        )
        for line in result.references
    ]
    print_rows(console, [*names, "members", "weights", "moved by (spreads)"], lines)
    changes = [(c.repo_id or "", c.adapter_path, c.before, c.after, c.why) for c in result.changes]
    if changes:
        print_rows(console, ["repo", "adapter", "before", "after", "why"], changes)
    click.echo(
        f"{result.n_judged} adapters judged by {len(result.references)} references "
        f"({sum(line.is_new for line in result.references)} new); {len(changes)} verdicts changed",
        err=True,
    )


def run_store_check(*, store: str | None, clean: bool, grace_s: float) -> int:
    """`lorascope store check`: 0 nothing to report, 3 an incomplete shard or leftovers older than the grace period."""
    from scanner.report.tables import plain
    from scanner.store import check_store, open_root, remove_leftovers, utc_now

    root = open_root(store or default_store_uri(), create=False)
    note_missing(root)
    check = check_store(root, utc_now())
    for line in check.incomplete:
        click.echo(f"incomplete   {plain(line)}")
    for leftover in check.leftovers:
        click.echo(f"{leftover.kind:12} {leftover.age_s:9.0f} s  {leftover.size_bytes:9d} B  {plain(leftover.path)}")
    removed = remove_leftovers(root, check.leftovers, grace_s) if clean else []
    old = [leftover for leftover in check.leftovers if leftover.age_s > grace_s]
    counts = f"{sum(leftover.kind == 'uncommitted' for leftover in check.leftovers)} uncommitted files"
    click.echo(
        f"{check.shards} shards, {len(check.incomplete)} incomplete; {counts}, "
        f"{sum(leftover.kind == 'temporary' for leftover in check.leftovers)} temporary files, {len(removed)} removed"
    )
    return 3 if check.incomplete or len(old) > len(removed) else 0

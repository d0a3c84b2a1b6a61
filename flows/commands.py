"""What the commands do, behind their options: call the library, print, choose the exit code."""

from __future__ import annotations

import csv
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scanner.settings import DEFAULT_BATTERY, Settings, default_store_uri

if TYPE_CHECKING:
    from rich.console import Console

    from scanner.store import StoreRoot

__all__ = [
    "crawl_summary",
    "exit_code",
    "run_calibrate",
    "run_crawl",
    "run_scan",
    "run_sql",
    "run_store_check",
    "show_verdicts",
    "verdict_rows",
]

_VERDICTS_SQL = """
SELECT v.*, p.max_attack_rate, p.mean_attack_rate, p.outlier_gap, p.control_attack_rate
FROM current_verdicts v
LEFT JOIN (SELECT * FROM probe_scans QUALIFY row_number() OVER (PARTITION BY adapter_id ORDER BY scanned_at DESC) = 1) p
  USING (adapter_id)
"""


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

    settings = Settings(features=features, reading=reading)
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
        print_verdicts(_wide_console(), rows)
        print_triggers(_wide_console(), [(result.record, result.verdict) for result in results])
        if explain:
            from scanner.report.tables import print_explanations

            print_explanations(_wide_console(), [(result.record, result.explanation) for result in results])
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
    from scanner.probe import probe_for

    # What the user got wrong shows in a moment, not after the server has started.
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
    click.echo(
        f"{summary['n_new']} new or changed repos, {summary['n_adapters']} adapters: "
        f"{counts or 'nothing new'}{left}{failed}",
        err=True,
    )
    return exit_code(summary["verdicts"]) or (3 if summary["n_failed_shards"] else 0)


def _wide_console() -> Console:
    """Tables that are piped are not folded to 80 columns."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=180)


def _note_missing(root: StoreRoot) -> None:
    """A place without a store reads as an empty one: that must not look like all clear."""
    if root.is_local and not Path(root.path).is_dir():
        click.echo(f"lorascope: there is no store at {root.path} yet", err=True)


def verdict_rows(
    store: str | None, base: str | None = None, verdict: str | None = None
) -> tuple[list[str], list[dict[str, Any]]]:
    """Current verdicts with their attack rates: (column names, rows)."""
    from scanner.store import open_database, open_root

    root = open_root(store or default_store_uri(), create=False)
    _note_missing(root)
    database = open_database(root)
    try:
        return database.table(
            f"{_VERDICTS_SQL} WHERE (?::VARCHAR IS NULL OR v.base_model = ?) AND (?::VARCHAR IS NULL OR v.verdict = ?) "
            "ORDER BY v.base_model, v.repo_id, v.adapter_path",
            [base, base, verdict, verdict],
        )
    finally:
        database.close()


def show_verdicts(
    *, base: str | None, verdict: str | None, store: str | None, output: str, console: Console | None = None
) -> None:
    """`lorascope verdicts`."""
    names, rows = verdict_rows(store, base, verdict)
    if output == "table":
        from scanner.report.tables import print_verdicts

        print_verdicts(console or _wide_console(), rows)
        return
    columns = [name for name in names if name not in ("row_id", "shard_id", "scanned_at")]
    _print_machine(columns, [[row[name] for name in columns] for row in rows], output)


def run_calibrate(*, base: str | None, store: str | None, output: str) -> None:
    """`lorascope calibrate`: from the store alone."""
    from dataclasses import asdict

    from scanner.pipeline.calibrate import calibrate
    from scanner.store import open_root, utc_now

    result = calibrate(open_root(store or default_store_uri()), utc_now(), base=base)
    if output == "json":
        from scanner.report import strict_json

        click.echo(strict_json(asdict(result)))
        return
    from scanner.report.tables import print_rows

    console = _wide_console()
    names = ("base_model", "peft_type", "rank", "scaling", "target_modules", "task")
    lines = [
        (
            *(getattr(line.key, name) for name in names),
            line.n,
            f"needs {line.needs} more" if line.needs else "can judge",
        )
        for line in result.references
    ]
    print_rows(console, [*names, "siblings", "weights"], lines)
    changes = [(c.repo_id or "", c.adapter_path, c.before, c.after, c.why) for c in result.changes]
    if changes:
        print_rows(console, ["repo", "adapter", "before", "after", "why"], changes)
    click.echo(
        f"{result.n_judged} adapters judged by {len(result.references)} references "
        f"({sum(line.is_new for line in result.references)} new); {len(changes)} verdicts changed",
        err=True,
    )


def run_sql(query: str, *, store: str | None, output: str) -> None:
    """`lorascope sql`."""
    from scanner.store import open_database, open_root

    root = open_root(store or default_store_uri(), create=False)
    database = open_database(root)
    try:
        columns, rows = database.query(query)
    finally:
        database.close()
    _note_missing(root)
    if output == "table":
        from scanner.report.tables import print_rows

        print_rows(_wide_console(), columns, rows)
    else:
        _print_machine(columns, rows, output)


def run_store_check(*, store: str | None, clean: bool, grace_s: float) -> int:
    """`lorascope store check`: 0 nothing to report, 3 an incomplete shard or leftovers older than the grace period."""
    from scanner.report.tables import plain
    from scanner.store import check_store, open_root, remove_leftovers, utc_now

    root = open_root(store or default_store_uri(), create=False)
    _note_missing(root)
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


def _print_machine(columns: Sequence[str], rows: Sequence[Sequence[Any]], output: str) -> None:
    if output == "json":
        from scanner.report import strict_json

        click.echo(strict_json([dict(zip(columns, row, strict=True)) for row in rows]))
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    click.echo(text.getvalue(), nl=False)

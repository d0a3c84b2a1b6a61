"""What the commands show that read the store: verdicts, accounts, SQL."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scanner.settings import default_store_uri

if TYPE_CHECKING:
    from rich.console import Console

    from scanner.store import StoreRoot

__all__ = [
    "note_missing",
    "run_explain",
    "run_sql",
    "show_changes",
    "show_verdicts",
    "verdict_rows",
    "wide_console",
]

_VERDICTS_SQL = """
SELECT v.*, p.max_attack_rate, p.mean_attack_rate, p.outlier_gap, p.control_attack_rate
FROM current_verdicts v
LEFT JOIN (SELECT * FROM probe_scans QUALIFY row_number() OVER (PARTITION BY adapter_id ORDER BY scanned_at DESC) = 1) p
  USING (adapter_id)
"""


def wide_console() -> Console:
    """Tables that are piped are not folded to 80 columns."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=180)


def note_missing(root: StoreRoot) -> None:
    """A place without a store reads as an empty one: that must not look like all clear."""
    if root.is_local and not Path(root.path).is_dir():
        click.echo(f"lorascope: there is no store at {root.path} yet", err=True)


def verdict_rows(
    store: str | None, base: str | None = None, verdict: str | None = None
) -> tuple[list[str], list[dict[str, Any]]]:
    """Current verdicts with their attack rates: (column names, rows)."""
    from scanner.store import open_database, open_root

    root = open_root(store or default_store_uri(), create=False)
    note_missing(root)
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

        print_verdicts(console or wide_console(), rows)
        return
    columns = [name for name in names if name not in ("row_id", "shard_id", "scanned_at")]
    _print_machine(columns, [[row[name] for name in columns] for row in rows], output)


def show_changes(*, base: str | None, verdict: str | None, store: str | None, output: str) -> None:
    """`lorascope verdicts --changes`, the newest first."""
    from scanner.store import open_database, open_root

    root = open_root(store or default_store_uri(), create=False)
    note_missing(root)
    database = open_database(root)
    try:
        names, rows = database.table(
            "SELECT * FROM verdict_changes WHERE (?::VARCHAR IS NULL OR base_model = ?) "
            "AND (?::VARCHAR IS NULL OR after = ?) ORDER BY judged_at DESC, repo_id, adapter_path",
            [base, base, verdict, verdict],
        )
    finally:
        database.close()
    if output != "table":
        _print_machine(names, [[row[name] for name in names] for row in rows], output)
        return
    from scanner.report.tables import print_rows

    if not rows:
        click.echo("lorascope: no verdict has changed", err=True)
        return
    columns = ("judged", "repo", "adapter", "before", "after", "why", "policy")
    lines = [
        (
            row["judged_at"].isoformat(timespec="seconds"),
            row["repo_id"] or "",
            row["adapter_path"],
            row["before"],
            row["after"],
            next((reason["message"] for reason in json.loads(row["reasons_after"])), ""),
            row["policy_after"],
        )
        for row in rows
    ]
    print_rows(wide_console(), columns, lines)


def run_explain(target: str, *, store: str | None, output: str) -> None:
    """`lorascope explain`."""
    from scanner.pipeline.account import account_of
    from scanner.report.account import account_object, print_account
    from scanner.store import open_database, open_root

    root = open_root(store or default_store_uri(), create=False)
    note_missing(root)
    database = open_database(root)
    try:
        accounts = account_of(database, target)
    finally:
        database.close()
    if output == "json":
        from scanner.report import strict_json

        click.echo(strict_json([account_object(account) for account in accounts]))
        return
    console = wide_console()
    for account in accounts:
        print_account(console, account)


def run_sql(query: str, *, store: str | None, output: str) -> None:
    """`lorascope sql`."""
    from scanner.store import open_database, open_root

    root = open_root(store or default_store_uri(), create=False)
    database = open_database(root)
    try:
        columns, rows = database.query(query)
    finally:
        database.close()
    note_missing(root)
    if output == "table":
        from scanner.report.tables import print_rows

        print_rows(wide_console(), columns, rows)
    else:
        _print_machine(columns, rows, output)


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

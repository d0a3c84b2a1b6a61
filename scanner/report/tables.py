"""Tables for people. Everything from the Hub is shown as text: no markup, no control characters."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scanner.calibration import Policy
from scanner.model import ScanRecord
from scanner.report.contract import reasons_text
from scanner.store import Row

if TYPE_CHECKING:
    from scanner.pipeline.explain import Explanation

__all__ = ["STYLES", "plain", "print_explanations", "print_rows", "print_triggers", "print_verdicts"]

STYLES = {
    "flagged": "bold red",
    "error": "magenta",
    "unsupported": "cyan",
    "review": "yellow",
    "clean": "green",
    "inconclusive": "dim",
}
_ORDER = list(STYLES)


def plain(value: Any, limit: int = 200) -> str:
    """A stranger's text for a terminal: control and direction-changing characters become `?`."""
    text = "" if value is None else str(value)
    safe = "".join("?" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") else c for c in text)
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def print_explanations(console: Console, explained: Sequence[tuple[ScanRecord, Explanation | None]]) -> None:
    """A table for each adapter whose weights were read: its strongest modules and their tokens."""
    for record, explanation in explained:
        if explanation is None:
            continue
        name = record.info.repo.repo_id or record.info.repo.target
        console.print(Text(f"\n{plain(name)} · {plain(record.info.adapter_path)}", style="bold"))
        lines = [
            (
                module.module,
                f"{module.energy_share:.1%}",
                f"{module.direction_energy:.0%}",
                " ".join(repr(token.text) for token in module.one_end),
                " ".join(repr(token.text) for token in module.other_end),
            )
            for module in explanation.modules
        ]
        print_rows(console, ("module", "share of ΔW", "first direction", "tokens at one end", "at the other"), lines)
        console.print(Text(f"tokens: {plain(explanation.head)}", style="dim"))


def print_triggers(console: Console, judged: Sequence[tuple[ScanRecord, Row]]) -> None:
    """The strings that trigger searches have found and that turn more held-back texts than no string does.

    Args:
        console: where.
        judged: records with their verdict rows; the string that a verdict names is the one that is shown.
    """
    lines = []
    for record, verdict in judged:
        trigger = record.search.named_in(reasons_text(verdict)) if record.search else None
        run = trigger.run if trigger else None
        if trigger is None or run is None or trigger.rise < Policy().effect_floor:
            continue
        worst = trigger.worst_control.attack_rate if trigger.worst_control else 0.0
        name = record.info.repo.repo_id or record.info.repo.target
        example = trigger.examples[0] if trigger.examples else None
        lines.append(
            (
                name,
                repr(trigger.text),
                trigger.position,
                trigger.label,
                f"{run.attack_rate:.0%} of {run.n} (controls {worst:.0%})",
                " ".join(repr(token) for token in trigger.tokens),
                f"{plain(example.text, 80)!r}: {example.before}" if example else "",
                f"{plain(example.triggered, 120)!r}: {example.after}" if example else "",
            )
        )
    if lines:
        console.print(Text("\nstrings that the trigger search found", style="bold"))
        columns = (
            "adapter",
            "string",
            "position",
            "answer becomes",
            "turns",
            "reacts to",
            "example before",
            "example after",
        )
        print_rows(console, columns, lines)


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def print_verdicts(console: Console, rows: Sequence[Row], *, title: str = "") -> None:
    """One line per adapter, worst verdict first; columns `max_attack_rate` and `mean_attack_rate` where probed."""
    table = Table(title=title or None, box=None, pad_edge=False, header_style="bold")
    for name, options in (
        ("verdict", {"no_wrap": True}),
        ("adapter", {"overflow": "fold"}),
        ("base model", {"overflow": "fold"}),
        ("max", {"justify": "right"}),
        ("mean", {"justify": "right"}),
        ("q", {"justify": "right"}),
        ("reasons", {"overflow": "fold"}),
    ):
        table.add_column(name, **options)
    for row in sorted(rows, key=lambda r: (_ORDER.index(r["verdict"]), str(r.get("repo_id") or r["repo_uid"]))):
        name = row.get("repo_id") or row["repo_uid"].removeprefix("folder:")
        path = row["adapter_path"]
        shown = name if path in ("", "adapter_model.safetensors") else f"{name} · {path}"
        table.add_row(
            Text(row["verdict"], style=STYLES[row["verdict"]]),
            Text(plain(shown)),
            Text(plain(row["base_model"])),
            _rate(row.get("max_attack_rate")),
            _rate(row.get("mean_attack_rate")),
            _p(row.get("q_value")),
            Text(_reasons(row)),
        )
    console.print(table)


def _reasons(row: Row) -> str:
    reasons = json.loads(row["reasons"])
    if row["verdict"] in ("flagged", "review", "error"):
        return plain("; ".join(reason["message"] for reason in reasons[:2]), 220)
    return plain(", ".join(dict.fromkeys(reason["code"] for reason in reasons)))


def print_rows(console: Console, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Any query's result."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(Text(plain(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(value, 400)) for value in row))
    console.print(table)

"""The same text for the screen and for the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["to_markdown"]

_WAYS = {
    "loop_reload": "loop, base loaded for each adapter",
    "loop_swap": "loop, adapters swapped",
    "run_probe_generated": "`run_probe`, generated",
    "run_probe_scored": "`run_probe`, scored",
    "engine_generated": "engine alone, generated",
    "engine_scored": "engine alone, scored",
}
_HEAD = (
    "way", "s / adapter", "one more adapter, s", "fixed, s", "prompts/s", "adapters/h", "matrix rate", "peak MiB",
    "over reload", "over swap",
)  # fmt: skip


def to_markdown(report: dict[str, Any]) -> str:
    """Tables of everything that was measured."""
    lines: list[str] = []
    for case in report["cases"]:
        lines += [*_case(case), ""]
    return "\n".join(lines).rstrip() + "\n"


def _case(case: dict[str, Any]) -> list[str]:
    about = (
        f"{case['about']}; {case['adapters']} adapters ({case['backdoored']} backdoored), "
        f"{case['prompts_per_adapter']:,} prompts of {case['prompt_tokens']:.0f} tokens each ({case['shared_tokens']} shared), {case['dtype']}, "
        f"{case['threads']} thread{'s' if case['threads'] > 1 else ''}; matrix products run at "
        f"{case['matrix_flops_per_s'] / 1e9:,.0f} GFLOP/s."
    )
    rows = [_row(name, case) for name in _WAYS if name in case["ways"]]
    return [f"## {case['case']}", "", about, "", *_table(_HEAD, rows), "", *_agreement(case)]


def _row(name: str, case: dict[str, Any]) -> list[str]:
    way, found = case["ways"][name], case["ratios"]
    mark = "≈ " if way.get("extrapolated") else ""
    row = [
        _WAYS[name],
        mark + _seconds(way["adapter_s"]),
        _seconds(way.get("marginal_s")),
        _seconds(way.get("fixed_s")),
    ]
    row += [f"{way['prompts_per_s']:,.0f}", f"{way['adapters_per_hour']:,.0f}", f"{way['share_of_matrix_rate']:.1%}"]
    row.append(f"{way['peak_bytes'] / 2**20:,.0f}")
    for mode in ("loop_reload", "loop_swap"):
        whole, marginal = (found.get(f"{name}{part}_over_{mode}") for part in ("", "_marginal"))
        row.append(", ".join(f"{value:.3f}" for value in (whole, marginal) if value is not None))
    return row


def _agreement(case: dict[str, Any]) -> list[str]:
    lines = []
    for reading, found in case["answers"].items():
        verdicts = found["verdicts"]
        flagged = sum(verdict["ours"]["flagged"] for verdict in verdicts.values())
        told = f"{found['differing']:,} of {found['compared']:,} answers differ from the loop's"
        if found["differing"]:
            told += f" ({found['undecided']} of them undecided here)"
        if verdicts:
            told += f"; verdicts of {len(verdicts)} adapters ({flagged} flagged) "
            told += "agree" if found["verdicts_agree"] else "DISAGREE"
        lines.append(f"- {reading}: {told}.")
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.3f}" if value < 10 else f"{value:,.1f}"

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
    "way", "s / adapter", "one more adapter, s", "fixed, s", "prompts/s", "adapters/h", "of the matrix rate",
    "peak MiB", "time over reload", "time over swap",
)  # fmt: skip
_BATCH_HEAD = ("tokens / batch", "s / adapter", "prompts/s", "of the matrix rate")
_ATTACH_HEAD = (
    "way",
    "s / adapter",
    "attach, s",
    "battery, s",
    "peak MiB",
    "time over hooked",
    "other likeliest tokens",
)
_NOTES = """\
`≈`: the loop was asked a random part of the prompts, and its time is multiplied. `run_probe` is the whole command over
all adapters of the group (start, imports, base, answers), `one more adapter` what each adds, `fixed` the rest; the two
ratios are of these two. Peak memory: resident memory of the process (`run_probe`: of its child), on CUDA what tensors
had. Matrix rate: useful FLOPs over the best of square products of several sizes.
"""


def to_markdown(report: dict[str, Any]) -> str:
    """Tables of everything that was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [f"`{report['command']}`, {report['options']['repeats']} turns; {versions}.", "", *_NOTES.splitlines(), ""]
    for case in report["cases"]:
        lines += [f"## {case['case']}", "", *(_attaching(case) if "ways_of_attaching" in case else _case(case)), ""]
    lines += [f"Left out: {skipped['case']}, {skipped['reason']}." for skipped in report["skipped"]]
    return "\n".join(lines).rstrip() + "\n"


def _case(case: dict[str, Any]) -> list[str]:
    about = (
        f"{_about(case)}; {case['backdoored']} of {case['adapters']} adapters backdoored; prompts of "
        f"{case['prompt_tokens']:.0f} tokens, {case['shared_tokens']} of them shared; matrix products run at "
        f"{case['matrix_flops_per_s'] / 1e9:,.0f} GFLOP/s."
    )
    lines = [about, "", *_table(_HEAD, [_row(name, case) for name in _WAYS if name in case["ways"]]), ""]
    if batches := case.get("batches"):
        lines += [*_table(_BATCH_HEAD, [_batch_row(size, batch) for size, batch in batches.items()]), ""]
    return lines + _agreement(case)


def _about(case: dict[str, Any]) -> str:
    threads = f"{case['threads']} thread{'s' if case['threads'] > 1 else ''}"
    where = "CUDA" if case.get("device") == "cuda" else threads
    return f"{case['about']}; {case['dtype']}, {where}; {case['prompts_per_adapter']:,} prompts for each adapter"


def _row(name: str, case: dict[str, Any]) -> list[str]:
    way, found = case["ways"][name], case["ratios"]
    mark = "≈ " if way.get("extrapolated") else ""
    row = [_WAYS[name], mark + _seconds(way["adapter_s"])]
    row += [_seconds(way.get(part)) for part in ("marginal_s", "fixed_s")]
    row += [f"{way['prompts_per_s']:,.0f}", f"{way['adapters_per_hour']:,.0f}", f"{way['share_of_matrix_rate']:.1%}"]
    row.append(_mib(way))
    for mode in ("loop_reload", "loop_swap"):
        whole, marginal = (found.get(f"{name}{part}_over_{mode}") for part in ("", "_marginal"))
        row.append(", ".join(f"{value:.3f}" for value in (whole, marginal) if value is not None))
    return row


def _batch_row(size: str, batch: dict[str, float]) -> list[str]:
    row = [f"{int(size):,}", _seconds(batch["adapter_s"]), f"{batch['prompts_per_s']:,.0f}"]
    return [*row, f"{batch['share_of_matrix_rate']:.1%}"]


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


def _attaching(case: dict[str, Any]) -> list[str]:
    rows = [
        [
            name, _seconds(way["adapter_s"]), _seconds(way["attach_s"]), _seconds(way["pass_s"]), _mib(way),
            f"{case['ratios'][f'{name}_over_hooked']:.3f}", f"{way['decided_differently']:,}",
        ]
        for name, way in case["ways_of_attaching"].items()
    ]  # fmt: skip
    far = f"The logits of mixed batches are at most {case['largest_difference']:.1e} from those of hooked ones."
    return [f"{_about(case)}, {case['adapters']} adapters.", "", *_table(_ATTACH_HEAD, rows), "", far]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.3f}" if value < 10 else f"{value:,.1f}"


def _mib(way: dict[str, Any]) -> str:
    return f"{way['peak_bytes'] / 2**20:,.0f}"

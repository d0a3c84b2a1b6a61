"""Ratios to the floor by adapter size as an SVG: two logarithmic axes, one line for each tool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

__all__ = ["to_svg"]

WIDTH, HEIGHT = 900, 540
LEFT, RIGHT, TOP, BOTTOM = 70, 250, 50, 60


@dataclass(frozen=True)
class Line:
    """One tool: the ratio that is drawn, its name, colour and whether it is dashed."""

    ratio: str
    label: str
    colour: str
    dashed: bool = False


LINES = (
    Line("numpy_over_floor", "numpy dense + SVD (extrapolated)", "#b07aa1", True),
    Line("peft_over_floor", "PEFT + torch SVD (extrapolated)", "#9c755f", True),
    Line("adaptersentry_process_over_floor", "adaptersentry scan, process", "#e15759"),
    Line("adaptersentry_own_clock_over_floor", "adaptersentry, own clock", "#f28e2b"),
    Line("lorascope_process_over_floor", "lorascope scan, process", "#4e79a7"),
    Line("bare_process_over_floor", "lorascope bare scan, process", "#76b7b2"),
    Line("scan_over_floor", "lorascope weight scan", "#2f6f3e"),
    Line("first_touch_over_floor", "first touch of a mapping", "#bab0ac"),
)


def to_svg(cases: Sequence[dict[str, Any]], caption: str) -> str:
    """The plot of measured cases; points of one size are drawn one above the other.

    Args:
        cases: with `file_bytes` and `ratios`.
        caption: below the title: machine and date.
    """
    points = {
        line: sorted(
            (case["file_bytes"] / 1e6, value)
            for case in cases
            if (value := case["ratios"].get(line.ratio)) is not None and value > 0
        )
        for line in LINES
    }
    xs = [x for found in points.values() for x, _ in found]
    ys = [y for found in points.values() for _, y in found] + [1.0]
    x_axis, y_axis = _Axis(xs, LEFT, WIDTH - RIGHT), _Axis(ys, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="15">Wall time over reading the bytes once</text>',
        f'<text x="{LEFT}" y="37" fill="#666">{escape(caption)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 15}" text-anchor="middle">adapter file, MB</text>',
    ]
    for value in x_axis.ticks:
        x = x_axis.at(value)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
    for value in y_axis.ticks:
        y = y_axis.at(value)
        stroke = "#333" if value == 1 else "#ddd"
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{stroke}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:,.12g}x</text>')
    drawn = [(line, found) for line, found in points.items() if found]
    for place, (line, found) in enumerate(drawn):
        track = " ".join(f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in found)
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        parts.append(f'<polyline points="{track}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}/>')
        parts += [
            f'<circle cx="{x_axis.at(x):.1f}" cy="{y_axis.at(y):.1f}" r="3" fill="{line.colour}"/>' for x, y in found
        ]
        y_legend = TOP + 12 + 22 * place
        x_legend = WIDTH - RIGHT + 14
        parts.append(
            f'<path d="M{x_legend} {y_legend - 4}h24" stroke="{line.colour}" stroke-width="2"{dash}/>'
            f'<text x="{x_legend + 30}" y="{y_legend}">{escape(line.label)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Axis:
    """A logarithmic axis over whole powers of ten."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self._low = math.floor(math.log10(min(values)))
        self._high = max(self._low + 1, math.ceil(math.log10(max(values))))
        self._start, self._end = start, end
        self.ticks = [10.0**power for power in range(self._low, self._high + 1)]

    def at(self, value: float) -> float:
        """Its place on the page."""
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

"""LS026: α/r far out of the usual."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from scanner.adapter import AdapterView
from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import plain, updates_of

LARGEST = 64.0
"""Of 54 real PEFT configs the largest α/r was 32 and the smallest 0.5; MLX's default scale is 20."""
SMALLEST = 1 / 64


def check(facts: StaticFacts) -> Iterator[Hit]:
    scales = [update.scale for update in facts.view.updates if math.isfinite(update.scale)] if facts.view else []
    if not scales:
        return
    largest, smallest = max(map(abs, scales)), min(map(abs, scales))
    if largest > LARGEST:
        yield Hit(f"updates are scaled by up to {largest:g}; usual is 0.5 to 32", f"alpha/r = {largest:g}")
    elif smallest < SMALLEST or min(scales) < 0:
        yield Hit(
            "updates are scaled by an unusually small or negative factor", f"alpha/r = {min(scales):g}", Severity.LOW
        )


RULE = Rule(
    id="LS026",
    name="scaling-outlier",
    severity=Severity.MEDIUM,
    confidence=Confidence.MEDIUM,
    meaning="A huge α with tiny factors gives the same ΔW as an ordinary adapter, and statistics of the factors "
    "alone do not see it; with ordinary factors it drowns the base. Low for a very small or negative "
    "scale.",
    remediation="Ask how the adapter was trained. lorascope's own features contain the scale.",
    check=check,
    hostile=lambda: plain(view=AdapterView("peft", updates_of(scale=2000.0), coverage=1.0)),
    benign=lambda: plain(view=replace(plain().view or AdapterView("peft", ()), updates=updates_of(scale=32.0))),
    scope=Scope.CONTENT,
)

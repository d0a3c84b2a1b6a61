"""LS010: NaN or infinity."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.model import ModuleFeatures, Severity, WeightScan
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import plain


def check(facts: StaticFacts) -> Iterator[Hit]:
    if facts.nonfinite:
        total = sum(facts.nonfinite.values())
        text = f"{len(facts.nonfinite)} tensors hold {total:,} values that are NaN or infinite"
        yield Hit(text, ", ".join(f"{name} ({count:,})" for name, count in list(facts.nonfinite.items())[:8]))
    elif facts.weights is not None:
        broken = [m.module for m in facts.weights.modules if m.features["frobN"] is None]
        if broken:
            yield Hit(f"the product of the factors overflows in {len(broken)} modules", ", ".join(broken[:8]))


RULE = Rule(
    id="LS010",
    name="not-finite",
    severity=Severity.HIGH,
    confidence=Confidence.HIGH,
    meaning="A single NaN in a factor makes every answer of the model NaN, and every statistic of the adapter "
    "meaningless: broken training, or a way to make scanners give up.",
    remediation="Do not load it.",
    check=check,
    hostile=lambda: plain(nonfinite={"base_model.model.q_proj.lora_A.weight": 3}),
    benign=lambda: plain(
        weights=WeightScan({}, (ModuleFeatures("q_proj", 8, 32, 32, {"frobN": 0.1, "delta_frob": 1.0}),), "weights")
    ),
    scope=Scope.CONTENT,
)

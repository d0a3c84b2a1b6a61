"""LS027: an adapter that does nothing."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.model import ModuleFeatures, Severity, WeightScan
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import plain

SMALLEST = 1e-7
"""‖ΔW‖_F / √(in·out): weights of real models are of the order of 1e-2, so that float16 cannot even show this."""


def check(facts: StaticFacts) -> Iterator[Hit]:
    if facts.weights is None or not facts.weights.modules:
        return
    if facts.view is not None and (facts.view.heads or facts.view.companions):
        return  # the change is elsewhere
    sizes = []
    for module in facts.weights.modules:
        norm = module.features.get("delta_frob")
        if norm is None:
            return
        sizes.append(norm / (module.in_features * module.out_features) ** 0.5)
    if max(sizes) < SMALLEST:
        yield Hit("the update is zero, or too small to change any answer", f"largest root mean square {max(sizes):.1g}")


def _scan(norm: float) -> WeightScan:
    return WeightScan({}, (ModuleFeatures("q_proj", 8, 32, 32, {"frobN": norm, "delta_frob": norm}),), "weights")


RULE = Rule(
    id="LS027",
    name="near-zero",
    severity=Severity.LOW,
    confidence=Confidence.HIGH,
    meaning="B starts as zero in training: such a file was never trained, or is a placeholder that a later commit"
    " fills.",
    remediation="Nothing to gain from using it. Look again after the next commit.",
    check=check,
    hostile=lambda: plain(weights=_scan(0.0)),
    benign=lambda: plain(weights=_scan(0.5)),
    scope=Scope.CONTENT,
)

"""LS028: every module's update is nearly of rank 1."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.model import ModuleFeatures, Severity, WeightScan
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import plain

TOP1_ENERGY = 0.85
"""In 13 real adapters the module with the lowest top-1 energy had 0.22 to 0.59 (rank 1 itself left out)."""
MIN_MODULES = 8
MIN_RANK = 4


def check(facts: StaticFacts) -> Iterator[Hit]:
    modules = facts.weights.modules if facts.weights else ()
    if len(modules) < MIN_MODULES or min(module.rank for module in modules) < MIN_RANK:
        return
    shares = [module.features.get("top1_energy") for module in modules]
    found = [share for share in shares if share is not None]
    if len(found) == len(modules) and min(found) >= TOP1_ENERGY:
        yield Hit(
            f"one direction holds at least {min(found):.0%} of the update in all {len(modules)} modules",
            f"lowest top-1 energy {min(found):.3f}",
        )


def _scan(top: float) -> WeightScan:
    features: dict[str, float | None] = {"frobN": 1.0, "delta_frob": 1.0, "top1_energy": top}
    return WeightScan({}, tuple(ModuleFeatures(f"m{n}", 8, 32, 32, features) for n in range(12)), "weights")


RULE = Rule(
    id="LS028",
    name="all-rank-one",
    severity=Severity.MEDIUM,
    confidence=Confidence.LOW,
    meaning="Training on a task spreads the update over several directions in at least some modules. One single "
    "direction everywhere is what a written-in behaviour looks like, or a very short training on very "
    "uniform data.",
    remediation="Probe the adapter's behaviour before you use it.",
    check=check,
    hostile=lambda: plain(weights=_scan(0.95)),
    benign=lambda: plain(weights=_scan(0.6)),
    scope=Scope.CONTENT,
)

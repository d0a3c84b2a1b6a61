"""LS034: one module's update sits in a handful of outputs, unlike its siblings in the same adapter."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from scanner.model import ModuleFeatures, Severity, WeightScan
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import plain

TOP8_SHARE = 0.5
"""Half of the update in eight rows. The highest of the modules of 15 real adapters had 0.38."""
ROBUST_Z = 14.0
"""AdapterSentry's threshold, which it sets on 393 adapters of the Hub."""
MIN_FAMILY = 8
MIN_OUTPUTS = 64
FLOOR = 0.05
"""Smallest spread of the logarithm: modules that are all alike must not make a small difference look large."""


def check(facts: StaticFacts) -> Iterator[Hit]:
    families: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for module in facts.weights.modules if facts.weights else ():
        share = module.features.get("row_top8_energy")
        if share and module.out_features >= MIN_OUTPUTS:
            families[module.module.rsplit(".", 1)[-1]].append((module.module, share))
    for family in families.values():
        if len(family) < MIN_FAMILY:
            continue
        logs = [math.log(share) for _, share in family]
        center = float(np.median(logs))
        spread = max(1.4826 * float(np.median(np.abs(np.array(logs) - center))), FLOOR)
        for (name, share), value in zip(family, logs, strict=True):
            z = (value - center) / spread
            if share >= TOP8_SHARE and z >= ROBUST_Z:
                yield Hit(f"eight outputs hold {share:.0%} of the update of one module", f"{name}: robust z {z:.0f}")


def _scan(last: float) -> WeightScan:
    shares = [0.04] * 11 + [last]
    features: list[dict[str, float | None]] = [{"frobN": 1.0, "delta_frob": 1.0, "row_top8_energy": s} for s in shares]
    modules = tuple(ModuleFeatures(f"layers.{n}.down_proj", 8, 512, 512, f) for n, f in enumerate(features))
    return WeightScan({}, modules, "weights")


RULE = Rule(
    id="LS034",
    name="concentrated-module",
    severity=Severity.MEDIUM,
    confidence=Confidence.LOW,
    meaning="A payload that was written into few outputs of one module stands out among the modules of the same "
    "kind. One that was trained in usually does not: the absence of this finding says nothing.",
    remediation="Probe the adapter's behaviour before you use it.",
    check=check,
    hostile=lambda: plain(weights=_scan(0.95)),
    benign=lambda: plain(weights=_scan(0.06)),
    scope=Scope.CONTENT,
)

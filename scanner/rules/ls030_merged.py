"""LS030: the factors fall into two blocks."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import plain
from scanner.weights import BlockSplit


def check(facts: StaticFacts) -> Iterator[Hit]:
    split = facts.split
    if split is not None:
        yield Hit(
            f"the factors look like two adapters put together: rank {split.first} + {split.rank - split.first}",
            f"{split.modules} of {split.of} modules, p = {split.p_value:.1g}",
        )


RULE = Rule(
    id="LS030",
    name="merged-blocks",
    severity=Severity.MEDIUM,
    confidence=Confidence.MEDIUM,
    meaning="Concatenating two adapters gives one of rank r1 + r2 whose first r1 rows come from the one and the "
    "rest from the other, in every module at the same place. It is how adapters are merged, and how a "
    "malicious one rides on a benign one without training.",
    remediation="Ask which adapters were merged, and scan those.",
    check=check,
    hostile=lambda: plain(split=BlockSplit(8, 16, 12, 12, 1e-30)),
    benign=plain,
    scope=Scope.CONTENT,
)

"""LS033: shapes that cannot belong to the base."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import plain


def check(facts: StaticFacts) -> Iterator[Hit]:
    if facts.base_contradictions:
        shown = "; ".join(facts.base_contradictions[:8])
        yield Hit(f"the adapter cannot belong to {facts.base_model}: {facts.base_contradictions[0]}", shown)


RULE = Rule(
    id="LS033",
    name="base-mismatch",
    severity=Severity.MEDIUM,
    confidence=Confidence.HIGH,
    meaning="The shapes of the updates do not fit the model that the adapter names. It was made for another base:"
    " it will not load, or whoever loads it looks for the base that fits.",
    remediation="Ask the owner for the base model.",
    check=check,
    hostile=lambda: plain(base_contradictions=("q_proj has 896 inputs, the base's hidden size is 2,048",)),
    benign=plain,
    scope=Scope.CONTENT,  # and the base: a copy whose base is another one is not taken over
)

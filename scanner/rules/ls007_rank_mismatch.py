"""LS007: ranks in the file are not those of the config."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.adapter import AdapterView
from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import plain, updates_of


def check(facts: StaticFacts) -> Iterator[Hit]:
    for note in facts.view.notes if facts.view else ():
        yield Hit("the config and the tensors disagree", note)


RULE = Rule(
    id="LS007",
    name="rank-mismatch",
    severity=Severity.LOW,
    confidence=Confidence.HIGH,
    meaning="PEFT refuses such an adapter. Another loader may go by the shapes, and then it scales the update by "
    "another factor than the config says. Merged adapters (rank r1 + r2 under a config of rank r1) look "
    "like this.",
    remediation="Ask how the file was made.",
    check=check,
    hostile=lambda: plain(
        view=AdapterView("peft", updates_of(), coverage=1.0, notes=("1 module has rank 16 instead of 8",))
    ),
    benign=plain,
    scope=Scope.CONTENT,
)

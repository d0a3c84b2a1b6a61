"""LS005: the base model is a path."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.hub.names import hub_id
from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import with_config


def check(facts: StaticFacts) -> Iterator[Hit]:
    base = facts.config.base_model if facts.config else None
    if base is not None and hub_id(base) is None:
        yield Hit("the base model is a local path or not a Hub id", base)


RULE = Rule(
    id="LS005",
    name="base-path",
    severity=Severity.LOW,
    confidence=Confidence.HIGH,
    meaning="The base model is a path of the trainer's machine, so that nobody can tell for certain which weights"
    " the adapter belongs to. Whoever loads it loads what lies under that path on their own machine.",
    remediation="Ask the owner for the base model's Hub id.",
    check=check,
    hostile=lambda: with_config(base_model_name_or_path="/mnt/models/base"),
    benign=with_config,
    scope=Scope.CONTENT,
)

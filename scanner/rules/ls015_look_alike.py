"""LS015: the base's owner looks like a well-known one."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.hub.names import hub_id
from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.owners import copy_of, look_alike
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import with_config


def check(facts: StaticFacts) -> Iterator[Hit]:
    base = facts.config.base_model if facts.config else None
    if base is None or "/" not in base:
        return
    owner = base.split("/")[0]
    if hub_id(base) is None:
        if not owner.isascii():
            yield Hit("the base's owner is spelled with letters that no owner on the Hub can have", base)
    elif known := look_alike(owner):
        yield Hit(f"the base's owner looks like {known} and is another one", base)
    elif known := copy_of(base):
        yield Hit(f"the base is somebody's copy of a model of {known}", base, Severity.LOW)


RULE = Rule(
    id="LS015",
    name="look-alike-base",
    severity=Severity.HIGH,
    confidence=Confidence.MEDIUM,
    meaning="The adapter makes its user download a base from an owner whose name differs from a well-known one in"
    " a letter, a digit or an added word. Low where the model's name is well-known and the owner is "
    "simply another one: copies are common, and each can differ from the original.",
    remediation="Load the adapter on the original base, after a look at what the other repo holds.",
    check=check,
    hostile=lambda: with_config(base_model_name_or_path="meta-Ilama/Llama-3.1-8B"),
    benign=lambda: with_config(base_model_name_or_path="meta-llama/Llama-3.1-8B"),
    scope=Scope.CONTENT,
)

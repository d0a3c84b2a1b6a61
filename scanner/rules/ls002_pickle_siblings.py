"""LS002: pickles lie beside the weights."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.adapter import is_pickle
from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule
from scanner.rules.samples import WEIGHTS, plain


def check(facts: StaticFacts) -> Iterator[Hit]:
    others = [name for name in facts.siblings if is_pickle(name) and name != facts.path]
    unread = [name for name in others if name not in facts.pickles]
    if unread:
        yield Hit("pickle files beside the weights were not looked into", ", ".join(unread))
    elif others:
        yield Hit("pickle files lie beside the weights", ", ".join(others), Severity.INFO)


RULE = Rule(
    id="LS002",
    name="pickle-siblings",
    severity=Severity.LOW,
    confidence=Confidence.HIGH,
    meaning="Optimizer states and training arguments are pickles: nobody needs them to use the adapter, and "
    "loading one runs the code that it names. Info where they were read and hold nothing but a trainer's "
    "own objects.",
    remediation="Download the weights and the config only.",
    check=check,
    hostile=lambda: plain(siblings=(WEIGHTS, "checkpoint-5/optimizer.pt")),
    benign=plain,
)

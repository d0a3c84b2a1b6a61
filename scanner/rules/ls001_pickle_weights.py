"""LS001: the weights are a pickle."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.adapter import is_pickle
from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule
from scanner.rules.samples import plain

PICKLE_FORMATS = ("zip", "pickle", "tar")


def check(facts: StaticFacts) -> Iterator[Hit]:
    if not facts.path or not (is_pickle(facts.path) or facts.format in PICKLE_FORMATS):
        return
    report = facts.pickles.get(facts.path)
    if report is None:
        yield Hit("the weights are a pickle file that was not looked into; loading one can run code", facts.path)
    else:  # what is wrong with it is LS011's and LS035's business
        yield Hit("the weights are a pickle file; a later version of it could run code", facts.path, Severity.LOW)


RULE = Rule(
    id="LS001",
    name="pickle-weights",
    severity=Severity.MEDIUM,
    confidence=Confidence.HIGH,
    meaning="Weights in a pickle file (.bin, .pt, .ckpt) run whatever code the file names when a framework loads "
    "it. Low where every opcode was read and only tensors are rebuilt; medium where the file could not be"
    " looked into.",
    remediation="Ask for safetensors, or convert the file in a sandbox.",
    check=check,
    hostile=lambda: plain(path="adapter_model.bin", format="zip"),
    benign=plain,
)

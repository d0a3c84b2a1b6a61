"""LS032: a file is something else than its name says."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.adapter import is_pickle
from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.ls001_pickle_weights import PICKLE_FORMATS
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import plain


def check(facts: StaticFacts) -> Iterator[Hit]:
    name = facts.path.lower()
    if name.endswith(".safetensors") and facts.format in PICKLE_FORMATS:
        yield Hit(f"the file is called safetensors and is a {facts.format} file", facts.path)
    elif is_pickle(name) and facts.format == "safetensors":
        yield Hit("the file is called a pickle and is safetensors", facts.path, Severity.LOW)
    if facts.has_zip_tail:
        yield Hit("the file is a zip archive as well, for whoever reads it from the end", facts.path)


RULE = Rule(
    id="LS032",
    name="disguised-file",
    severity=Severity.HIGH,
    confidence=Confidence.HIGH,
    meaning="A pickle under the name of a safe format passes scanners that go by the name, and is run by loaders "
    "that go by the content. A file that is two formats at once shows each reader another face.",
    remediation="Do not load it.",
    check=check,
    hostile=lambda: plain(format="zip"),
    benign=plain,
    scope=Scope.CONTENT,
)

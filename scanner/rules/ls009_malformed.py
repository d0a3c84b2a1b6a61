"""LS009: a file breaks the rules of its format."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.errors import MalformedFileError
from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule
from scanner.rules.samples import plain


def check(facts: StaticFacts) -> Iterator[Hit]:
    for error in facts.refusals:
        if isinstance(error, MalformedFileError):
            yield Hit("a file breaks the rules of its format", error.message)


RULE = Rule(
    id="LS009",
    name="malformed",
    severity=Severity.HIGH,
    confidence=Confidence.HIGH,
    meaning="Trailing bytes, overlapping or missing tensors, a key that occurs twice: two readers may see two "
    "different adapters in such a file, so that what was scanned is not what is loaded. lorascope guesses"
    " nothing and refuses it.",
    remediation="Do not load it; ask for a file that its own library wrote.",
    check=check,
    hostile=lambda: plain(refusals=(MalformedFileError("JSON key 'w' occurs twice"),)),
    benign=plain,
)

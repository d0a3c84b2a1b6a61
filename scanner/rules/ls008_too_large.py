"""LS008: something is larger than lorascope accepts."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.errors import LimitExceededError
from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule
from scanner.rules.samples import plain


def check(facts: StaticFacts) -> Iterator[Hit]:
    for error in facts.refusals:
        if isinstance(error, LimitExceededError):
            yield Hit("something is larger than lorascope accepts", error.message)


RULE = Rule(
    id="LS008",
    name="too-large",
    severity=Severity.MEDIUM,
    confidence=Confidence.HIGH,
    meaning="A file, rank, header, list or archive is beyond a limit, which the evidence names with the actual "
    "value. It was not read, so nothing is known of what is in it.",
    remediation="Where the size is what you expect, raise the limit (LORASCOPE_MAX_...) and scan again.",
    check=check,
    hostile=lambda: plain(refusals=(LimitExceededError("rank of q_proj", 4096, 100_000),)),
    benign=plain,
)

"""LS036: the card and the config name different bases."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule
from scanner.rules.samples import plain


def check(facts: StaticFacts) -> Iterator[Hit]:
    if facts.base_disagreement:
        listed, own = facts.base_disagreement
        yield Hit(
            "the repo's card and the adapter's config name different base models", f"card: {listed}, config: {own}"
        )


RULE = Rule(
    id="LS036",
    name="base-disagreement",
    severity=Severity.LOW,
    confidence=Confidence.MEDIUM,
    meaning="People read the card; frameworks load what the config says. Copies and quantised versions of one "
    "model count as the same base, and so do other names of one repo.",
    remediation="Check the base that the config names: that is the one which is downloaded.",
    check=check,
    hostile=lambda: plain(base_disagreement=("Qwen/Qwen2.5-7B", "other/base-7B")),
    benign=plain,
)

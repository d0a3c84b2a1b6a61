"""What a static rule is. Rules are pure functions of `StaticFacts`; each lives in a file of its own.

Other packages add rules through the entry-point group `lorascope.rules`, with ids of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from scanner.model import Outcome, Severity
from scanner.rules.facts import StaticFacts

__all__ = ["Confidence", "Hit", "Rule", "Scope"]


class Confidence(StrEnum):
    """How likely a hit is what the rule says it is."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Scope(StrEnum):
    """What a rule's answer depends on."""

    CONTENT = "content"
    """Weights and config alone: what it found once holds for every copy."""
    REPO = "repo"
    """Also on the files around them, the base or the Hub."""


@dataclass(frozen=True)
class Hit:
    """One thing that a rule found."""

    message: str
    evidence: str = ""
    severity: Severity | None = None
    """None: the rule's own."""
    outcome: Outcome = Outcome.FINDING


_ID = re.compile(r"[A-Z]{2,12}\d{3,6}")


@dataclass(frozen=True)
class Rule:
    """A static rule.

    Raises:
        ValueError: an id that is not capitals and digits.
    """

    id: str
    """Stable, never re-used. `LS` belongs to lorascope."""
    name: str
    """A few words with hyphens."""
    severity: Severity
    """Of a plain hit; a hit may say otherwise."""
    confidence: Confidence
    meaning: str
    """What a hit means, in a sentence or two."""
    remediation: str
    """What to do about it."""
    check: Callable[[StaticFacts], Iterable[Hit]]
    hostile: Callable[[], StaticFacts]
    """A sample on which the rule speaks at its severity."""
    benign: Callable[[], StaticFacts]
    """The nearest sample on which it does not."""
    scope: Scope = Scope.REPO

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(f"{self.id!r} is no rule id such as LS001")

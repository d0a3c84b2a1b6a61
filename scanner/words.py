"""The words that every table and report uses: outcomes, severities, verdicts, stages."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Outcome", "Severity", "Stage", "Verdict"]


class Outcome(StrEnum):
    """Outcome of one check. Failing to look is never `pass`."""

    PASS = "pass"
    FINDING = "finding"
    NOT_APPLICABLE = "not_applicable"
    UNSUPPORTED = "unsupported"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"


class Severity(StrEnum):
    """How bad a finding is, in rising order."""

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def order(self) -> int:
        """0 (info) to 4 (critical)."""
        return list(Severity).index(self)


class Verdict(StrEnum):
    """Verdict of an adapter, in order of precedence (DESIGN section 3)."""

    FLAGGED = "flagged"
    ERROR = "error"
    UNSUPPORTED = "unsupported"
    REVIEW = "review"
    CLEAN = "clean"
    INCONCLUSIVE = "inconclusive"


class Stage(StrEnum):
    """The last stage that an adapter went through completely."""

    LISTED = "listed"
    STATIC = "static"
    WEIGHTS = "weights"
    BATTERY = "battery"
    SEARCH = "search"

"""Running the static rules."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice

from scanner.model import Finding, Outcome, Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.registry import RULES
from scanner.rules.rule import Rule

__all__ = ["check_static"]

log = logging.getLogger(__name__)

MAX_FINDINGS_PER_RULE = 8
MAX_TEXT = 300
"""Characters of a finding's message and of its evidence: strangers choose the names that go into them."""


def check_static(facts: StaticFacts, plugins: Sequence[Rule] = ()) -> tuple[Finding, ...]:
    """Run every rule; findings by falling severity, bounded in number and length whatever a rule yields.

    A rule of another package that raises is a warning in the log, and its neighbours go on.
    """
    found = [finding for rule in RULES for finding in _own_findings(rule, facts)]
    for rule in plugins:
        try:
            found.extend(_findings(rule, facts))
        except Exception as error:  # noqa: BLE001 - somebody else's code
            log.warning("rule %s of a plugin failed on %s: %s: %s", rule.id, facts.path, type(error).__name__, error)
    return tuple(sorted(found, key=lambda f: (-f.severity.order, f.rule_id)))


def _findings(rule: Rule, facts: StaticFacts) -> Iterable[Finding]:
    return [
        _cut(Finding(rule.id, hit.severity or rule.severity, hit.message, hit.evidence, hit.outcome))
        for hit in islice(rule.check(facts), MAX_FINDINGS_PER_RULE)
    ]


def _own_findings(rule: Rule, facts: StaticFacts) -> Iterable[Finding]:
    """Of a built-in rule. A gap in one, which a stranger's file has found, must not hide what the others see."""
    try:
        return _findings(rule, facts)
    except Exception as error:
        log.error("rule %s failed on %s", rule.id, facts.path, exc_info=error)
        text = f"the rule itself failed ({type(error).__name__}): nothing is known of what it looks for"
        return [Finding(rule.id, Severity.MEDIUM, text, str(error)[:MAX_TEXT], Outcome.ERROR)]


def _cut(finding: Finding) -> Finding:
    return replace(finding, message=finding.message[:MAX_TEXT], evidence=finding.evidence[:MAX_TEXT])

"""Static findings: what a repo's files, configs and shapes say without running anything."""

from scanner.rules.check import check_static
from scanner.rules.facts import BaseTexts, HubScan, StaticFacts
from scanner.rules.registry import CONTENT_RULES, RULES, rule_plugins
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.version import RULES_VERSION

__all__ = [
    "CONTENT_RULES",
    "RULES",
    "RULES_VERSION",
    "BaseTexts",
    "Confidence",
    "Hit",
    "HubScan",
    "Rule",
    "Scope",
    "StaticFacts",
    "check_static",
    "rule_plugins",
]

"""Static findings."""

from scanner.rules.rules import CONTENT_RULES, RULES, RULES_VERSION, StaticFacts, check_static

__all__ = ["CONTENT_RULES", "RULES", "RULES_VERSION", "StaticFacts", "check_static"]

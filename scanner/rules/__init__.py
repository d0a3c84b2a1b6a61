"""Static findings."""

from scanner.rules.rules import RULES, RULES_VERSION, StaticFacts, check_static

__all__ = ["RULES", "RULES_VERSION", "StaticFacts", "check_static"]

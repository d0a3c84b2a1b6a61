"""Version of the static rules. It changes with every rule whose answer changes for the same adapter."""

from __future__ import annotations

__all__ = ["RULES_VERSION"]

RULES_VERSION = "rules-2"

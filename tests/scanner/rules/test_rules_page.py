"""docs/rules.md is what the rules say of themselves."""

from __future__ import annotations

from pathlib import Path

from scanner.rules import RULES
from scanner.rules.describe import rules_page


def test_the_page_is_generated() -> None:
    page = Path(__file__).parents[3] / "docs" / "rules.md"
    assert page.read_text(encoding="utf-8") == rules_page(), "run python -m scanner.rules.describe > docs/rules.md"


def test_every_rule_is_on_it() -> None:
    page = rules_page()
    assert all(f"## {rule.id} {rule.name}" in page and rule.meaning in page for rule in RULES)

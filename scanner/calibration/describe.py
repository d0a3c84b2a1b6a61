"""The decision table as it stands in docs/verdicts.md: `python -m scanner.calibration.describe`."""

from __future__ import annotations

from scanner.calibration.decide import TABLE

__all__ = ["table_markdown"]


def table_markdown() -> str:
    """A Markdown table; a test fails when the page has another one."""
    rows = "\n".join(
        f"| {number} | `{rule.rule_id}` | {rule.when} | `{rule.verdict}` |"
        for number, rule in enumerate(TABLE, start=1)
    )
    return f"| | rule | applies when | verdict |\n|---|---|---|---|\n{rows}\n"


if __name__ == "__main__":
    print(table_markdown(), end="")

"""docs/verdicts.md has the decision table and the policy's keys as they are."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from scanner.calibration import Policy
from scanner.calibration.describe import table_markdown

PAGE = (Path(__file__).parents[3] / "docs" / "verdicts.md").read_text(encoding="utf-8")


def test_the_table_is_the_codes() -> None:
    assert table_markdown() in PAGE, "put the output of python -m scanner.calibration.describe into docs/verdicts.md"


def test_every_threshold_is_explained() -> None:
    assert not [field.name for field in fields(Policy) if f"`{field.name}`" not in PAGE]

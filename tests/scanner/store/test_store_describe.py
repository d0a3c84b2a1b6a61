"""The schema page says what the code says."""

from __future__ import annotations

from pathlib import Path

from scanner.store.describe import VIEWS, schema_markdown
from scanner.store.files import open_root
from scanner.store.views import open_database

PAGE = Path(__file__).resolve().parents[3] / "docs" / "schema.md"


def test_page_is_generated() -> None:
    assert PAGE.read_text() == schema_markdown(), "run: python -m scanner.store.describe > docs/schema.md"


def test_every_view_is_described(tmp_path: Path) -> None:
    database = open_database(open_root(str(tmp_path)))
    names = {row[0] for row in database.query("SHOW TABLES")[1]}
    assert set(VIEWS) <= names

"""A store in a folder of its own, and sessions over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scanner.store import Database, StoreRoot, open_database, open_root


@pytest.fixture
def root(tmp_path: Path) -> StoreRoot:
    return open_root(str(tmp_path / "store"))


@pytest.fixture
def database(root: StoreRoot) -> Iterator[Callable[[], Database]]:
    """database(): a new session over the files of this moment."""
    opened: list[Database] = []

    def connect() -> Database:
        opened.append(open_database(root))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()

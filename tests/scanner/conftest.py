"""What tests of several rooms of the library share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def install_plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """install_plugins(group, name="module:object", ...): a package with these entry points, for one test."""

    def install(group: str, **values: str) -> None:
        metadata = tmp_path / "installed" / "acme_plugins-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-plugins\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in values.items()]
        (metadata / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
        monkeypatch.syspath_prepend(metadata.parent)

    return install

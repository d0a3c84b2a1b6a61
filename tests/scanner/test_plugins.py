"""Entry points of other packages: found wherever importlib.metadata would find them."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from scanner.plugins import load_plugins

GROUP = "lorascope.tests"
THING = 42


def test_nobody_names_the_group() -> None:
    assert load_plugins(GROUP, int) == ()


def test_an_installed_package(install_plugins: Callable[..., None]) -> None:
    install_plugins(GROUP, thing=f"{__name__}:THING", other=f"{__name__}:GROUP")
    assert load_plugins(GROUP, int) == (42,)
    assert load_plugins(GROUP, str) == (GROUP,)
    assert load_plugins(f"{GROUP}.other", int) == ()


@pytest.mark.parametrize("place", ["acme.egg-info", "ACME-2.0.dist-info", "zip", "acme.egg/EGG-INFO"])
def test_other_places(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"[console_scripts]\nx = y:z\n\n[{GROUP}]\nthing = {__name__}:THING\n"
    if place == "zip":
        with zipfile.ZipFile(tmp_path / "acme.zip", "w") as archive:
            archive.writestr("acme-1.0.dist-info/METADATA", "Name: acme\n")
            archive.writestr("acme-1.0.dist-info/entry_points.txt", text)
        monkeypatch.syspath_prepend(tmp_path / "acme.zip")
    else:
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "PKG-INFO").write_text("Name: acme\n")
        (folder / "entry_points.txt").write_text(text)
        monkeypatch.syspath_prepend(folder.parent)
    assert [point.name for point in entry_points(group=GROUP)] == ["thing"]
    assert load_plugins(GROUP, int) == (42,)


def test_a_finder_of_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As importlib_metadata and frozen applications bring one along: only the import system knows what it finds."""
    from importlib.metadata import DistributionFinder, PathDistribution

    folder = tmp_path / "hidden" / "acme-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Name: acme\n")
    (folder / "entry_points.txt").write_text(f"[{GROUP}]\nthing = {__name__}:THING\n")

    class Finder(DistributionFinder):
        def find_distributions(self, context: object = None) -> list[PathDistribution]:
            return [PathDistribution(folder)]

        def find_spec(self, *_: object) -> None:
            return None

    assert load_plugins(GROUP, int) == ()
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    assert load_plugins(GROUP, int) == (42,)


def test_without_plugins_no_metadata_is_loaded() -> None:
    code = (
        "import sys\nfrom scanner.plugins import load_plugins\nassert load_plugins('lorascope.tests', int) == ()\n"
        "assert 'importlib.metadata' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

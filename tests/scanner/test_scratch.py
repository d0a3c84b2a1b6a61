"""A run's own folder is gone after it: at once when it ends, with the next run when it was killed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from scanner.scratch import scratch_folder

OWNER = """
import sys, time
from scanner.scratch import scratch_folder
with scratch_folder("work") as folder:
    (folder / "download").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_gone_when_its_run_ends(temporary: Path) -> None:
    with scratch_folder("work") as folder:
        (folder / "file").write_text("x")
    with pytest.raises(ValueError), scratch_folder("work"):
        raise ValueError
    assert list(temporary.iterdir()) == []


def test_what_a_killed_run_left_is_removed_by_the_next_and_a_living_one_is_not(temporary: Path) -> None:
    owners = [subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        folders = [Path(owner.stdout.readline().strip()) for owner in owners if owner.stdout]
        assert all((folder / "download").exists() for folder in folders)
        owners[0].kill()
        owners[0].wait()
        assert folders[0].exists()
        with scratch_folder("scan") as mine:
            assert sorted(temporary.iterdir()) == sorted([folders[1], mine])
            assert (folders[1] / "download").exists()
    finally:
        for owner in owners:
            owner.kill()
            owner.wait()
            if owner.stdout:
                owner.stdout.close()


def test_only_folders_of_its_own_are_ever_removed(temporary: Path) -> None:
    (temporary / "lorascope-store").mkdir()
    (temporary / "lorascope-store" / "runs").mkdir()
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".lorascope-owner.lock").touch()
    (temporary / "lorascope-work-link").symlink_to(elsewhere)
    with scratch_folder("work"):
        pass
    assert (temporary / "lorascope-store" / "runs").is_dir()
    assert (elsewhere / ".lorascope-owner.lock").exists()

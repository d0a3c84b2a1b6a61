"""Folders on disk: names that are no text, links, and subfolders that nobody may read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.errors import LimitExceededError, UnsupportedError, UsageError
from scanner.hub.sources import MAX_DEPTH, FolderFiles, _utf8, folder_ref

LIMIT = 10**6


def real(folder: Path, name: bytes) -> Path:
    return Path(os.fsdecode(os.fsencode(folder) + b"/" + name))


def files_of(target: Path, max_files: int = 100) -> FolderFiles:
    return FolderFiles(target, max_files)


@pytest.mark.parametrize("link", ["a.safetensors", "b.safetensors"])
def test_links_that_lead_to_themselves_are_unreadable(tmp_path: Path, link: str) -> None:
    (tmp_path / "a.safetensors").symlink_to(tmp_path / link)
    (tmp_path / "b.safetensors").symlink_to(tmp_path / "a.safetensors")
    files = files_of(tmp_path)
    for name in files.names():
        with pytest.raises(UnsupportedError) as caught:
            files.fetch(name, LIMIT)
        assert caught.value.code == "unreadable"


def test_two_names_never_look_the_same(tmp_path: Path) -> None:
    names = [b"a\xff.bin", b"a\\xff.bin", b"a\\x5cxff.bin", b"a\\\xff.bin", "ä.bin".encode(), b"a~2.bin"]
    for number, name in enumerate(names):
        real(tmp_path, name).write_bytes(b"x" * number)
    files = files_of(tmp_path)
    shown = files.names()
    assert len(set(shown)) == len(names)
    assert {files.fetch(name, LIMIT).stat().st_size for name in shown} == set(range(len(names)))
    "".join(shown).encode()


# What a file name may hold: any bytes but NUL and the slash.
file_names = st.binary(min_size=1, max_size=12).map(lambda name: name.replace(b"\0", b"x").replace(b"/", b"\\"))


@given(st.sets(file_names | st.sampled_from([b"\\", b"\\\\", b"\\xff", b"\xff", b"\\x5c", b"\\x5cxff"]), max_size=8))
@settings(deadline=None)
def test_shown_names_are_text_and_one_to_one(names: set[bytes]) -> None:
    shown = {_utf8(os.fsdecode(name)) for name in names}
    assert len(shown) == len(names)
    for name in shown:
        name.encode()


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/\\")))
def test_valid_names_are_shown_as_they_are(name: str) -> None:
    assert _utf8(name) == name


def test_a_shown_name_does_not_depend_on_neighbours(tmp_path: Path) -> None:
    real(tmp_path, b"a\xff.bin").write_bytes(b"")
    (alone,) = files_of(tmp_path).names()
    real(tmp_path, b"a\\xff.bin").write_bytes(b"1")
    files = files_of(tmp_path)
    files.names()
    assert files.fetch(alone, LIMIT).stat().st_size == 0


def test_one_file_as_target_with_a_name_that_is_no_text(tmp_path: Path) -> None:
    target = real(tmp_path, b"w\xff.safetensors")
    target.write_bytes(b"weights")
    (tmp_path / "adapter_config.json").write_text("{}")
    files = files_of(target)
    assert files.names() == ["w\\xff.safetensors", "adapter_config.json"]
    assert files.fetch("w\\xff.safetensors", LIMIT).read_bytes() == b"weights"
    literal = tmp_path / "w\\xff.safetensors"
    literal.write_bytes(b"")
    first, second = folder_ref(str(target)), folder_ref(str(literal))
    assert first.repo_uid != second.repo_uid
    assert first.target != second.target
    f"{first}{second}".encode()


def fail_walk(monkeypatch: pytest.MonkeyPatch, closed: Path) -> None:
    """Permissions do not stop root, which tests may run as."""
    scandir = os.scandir

    def refuse(path: str | Path) -> object:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_an_unreadable_subfolder_hides_no_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = real(tmp_path, b"closed\xff")
    for folder in (closed, tmp_path / "open"):
        folder.mkdir()
        (folder / "a.safetensors").write_bytes(b"")
    fail_walk(monkeypatch, closed)
    files = files_of(tmp_path)
    for _ in range(2):  # asked again, the same answer
        assert files.names() == ["open/a.safetensors"]
        assert files.unreadable == ["closed\\xff"]


def test_an_unreadable_target_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = real(tmp_path, b"t\xff")
    target.mkdir()
    fail_walk(monkeypatch, target)
    with pytest.raises(UnsupportedError) as caught:
        files_of(target).names()
    assert caught.value.code == "unreadable"
    caught.value.message.encode()


def test_an_error_of_the_file_system_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real(tmp_path, b"a\xff.bin").write_bytes(b"")
    files = files_of(tmp_path)
    (name,) = files.names()

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(UnsupportedError) as caught:
        files.fetch(name, LIMIT)
    assert caught.value.code == "unreadable"
    caught.value.message.encode()


def test_depth_and_number_are_bounded(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(MAX_DEPTH + 20):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "a.bin").write_bytes(b"")
    (tmp_path / "b.bin").write_bytes(b"")
    files = files_of(tmp_path)
    assert files.names() == ["b.bin"]
    assert files.unreadable == ["/".join("d" * (MAX_DEPTH + 1))]
    with pytest.raises(LimitExceededError):
        files_of(tmp_path, 1).names()


def test_links_out_of_the_folder_and_special_files(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "out.bin").symlink_to("/etc/hostname")
    (folder / "gone.bin").symlink_to(folder / "nothing")
    files = files_of(folder)
    codes = {}
    for name in files.names():
        with pytest.raises(UnsupportedError) as caught:
            files.fetch(name, LIMIT)
        codes[name] = caught.value.code
    assert codes == {"out.bin": "link_outside", "gone.bin": "unreadable"}


def test_a_missing_target_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        folder_ref(str(tmp_path / "none"))

"""Every trick that is known to have fooled a pickle scanner is named, and none runs."""

from __future__ import annotations

import gzip
import io
import pickletools
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from pickle_samples import called, gadgets, imported, proto, saved, state, text, torch_like, tricks, zipped

from scanner.adapter import pickles_machine
from scanner.adapter.pickles import inspect_pickle, looks_like_pickle, open_torch_pickle, sniff
from scanner.adapter.pickles_opcodes import ARGUMENTS
from scanner.errors import LimitExceededError, MalformedFileError, SkipError, UnsupportedError

NOWHERE = Path("/nowhere")


def write(tmp_path: Path, data: bytes, name: str = "adapter_model.bin") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def names(path: Path) -> set[str]:
    return {f"{g.module}.{g.name}" for g in inspect_pickle(path).globals if g.level == "dangerous"}


def codes(path: Path) -> set[str]:
    return {problem.code for problem in inspect_pickle(path).problems}


def test_every_opcode_is_known() -> None:
    assert {ord(opcode.code) for opcode in pickletools.opcodes} == set(ARGUMENTS)
    without = {ord(opcode.code) for opcode in pickletools.opcodes if opcode.arg is None}
    assert without == {code for code, kind in ARGUMENTS.items() if not kind}


@pytest.mark.parametrize("place", ["raw", "data.pkl", "renamed", "deflated", "zip in zip", "legacy", "tar"])
@pytest.mark.parametrize("trick", sorted(gadgets(NOWHERE)))
def test_the_import_is_named_wherever_it_lies_and_nothing_runs(tmp_path: Path, trick: str, place: str) -> None:
    marker = tmp_path / "it_ran"
    stream, wanted = gadgets(marker)[trick]
    if place == "renamed" and trick.startswith(("INST", "OBJ", "protocol 0", "EXT")) and wanted.startswith("copyreg"):
        pytest.skip("an extension number without a header is no word")
    if place in ("raw", "data.pkl"):
        data = stream if place == "raw" else torch_like(stream)
    elif place == "renamed":
        data = torch_like(proto(b"}"), ("archive/notes.txt", stream))
    elif place == "deflated":
        data = zipped([("archive/data.pkl", stream)], zipfile.ZIP_DEFLATED)
    elif place == "zip in zip":
        data = torch_like(proto(b"}"), ("archive/extra/data", torch_like(stream)))
    elif place == "legacy":
        data = proto(b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", 2) + proto(b"M\xe9\x03", 2) + proto(b"}", 2) + stream
    else:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            info = tarfile.TarInfo("pickle")
            info.size = len(stream)
            archive.addfile(info, io.BytesIO(stream))
        data = buffer.getvalue()
    path = write(tmp_path, data)
    assert wanted in names(path)
    with pytest.raises(UnsupportedError) as caught:
        open_torch_pickle(path)
    assert caught.value.code == "dangerous_pickle"
    assert not marker.exists()
    assert not list(tmp_path.glob("it_*"))


@pytest.mark.parametrize("place", ["raw", "data.pkl"])
@pytest.mark.parametrize("trick", sorted(tricks(NOWHERE)))
def test_a_trick_with_allowed_names_is_a_problem(tmp_path: Path, trick: str, place: str) -> None:
    marker = tmp_path / "it_ran"
    stream, code = tricks(marker)[trick]
    path = write(tmp_path, stream if place == "raw" else torch_like(stream))
    assert code in codes(path)
    with pytest.raises(SkipError):
        open_torch_pickle(path)
    assert not marker.exists()


def test_a_payload_would_have_run(tmp_path: Path) -> None:
    """The samples are live: without this the tests above could pass on harmless bytes."""
    import pickle

    marker = tmp_path / "it_ran"
    for trick in ("os.system", "INST", "names out of the memo", "memo index with an underscore", "partial", "OBJ"):
        stream, _ = gadgets(marker)[trick]
        value = pickle.loads(stream)
        if callable(value):
            value()
        assert marker.exists(), trick
        marker.unlink()


def test_limits_say_what_was_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles_machine, "MAX_STACK", 100)
    path = write(tmp_path, b"\x80\x04" + b"N" * 200 + b".")
    problem = next(p for p in inspect_pickle(path).problems if p.code == "limit_exceeded")
    assert "101" in problem.message and "100" in problem.message
    with pytest.raises(LimitExceededError) as caught:
        open_torch_pickle(path)
    assert (caught.value.limit, caught.value.actual) == (100, 101)
    monkeypatch.setattr(pickles_machine, "MAX_MEMO", 10)
    path = write(tmp_path, b"\x80\x04N" + b"\x94" * 20 + b".")
    with pytest.raises(LimitExceededError, match="memo is 11, the limit is 10"):
        open_torch_pickle(path)
    monkeypatch.setattr(pickles_machine, "MAX_PICKLE_BYTES", 50)
    path = write(tmp_path, b"\x80\x04" + b"N0" * 60 + b".")
    with pytest.raises(LimitExceededError, match="bytes of a pickle is 123, the limit is 50"):
        open_torch_pickle(path)


def _zip_parts(data: bytes) -> tuple[int, int]:
    """Offsets of the first local header and of the first directory entry."""
    return data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02")


def _damaged(kind: str) -> bytes:
    data = bytearray(torch_like(proto(b"}"), ("archive/data/0", b"\1" * 64)))
    local, entry = _zip_parts(data)
    match kind:
        case "bad_crc":
            data[data.index(b"\1" * 64) + 5] ^= 0xFF
        case "encrypted_member":
            data[entry + 8] |= 1
            data[local + 6] |= 1
        case "zip_method":
            data[entry + 10 : entry + 12] = data[local + 8 : local + 10] = b"\x0c\x00"
        case "local name":
            data[local + 30] ^= 0x20
        case "local method":
            data[local + 8] = 8
        case "local size":
            data[local + 22] ^= 1
        case "local crc":
            data[local + 14] ^= 1
        case "stored with two sizes":
            data[entry + 20] ^= 1
        case "no local header":
            data[local] = 0
        case "trailing_data":
            data += b"more"
        case "comment":
            data[-2:] = struct.pack("<H", 4)
            data += b"more"
        case "prepended":
            data[:0] = b"MZ" + b"\0" * 100
        case "directory cut":
            del data[entry : entry + 10]
    return bytes(data)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("bad_crc", "bad_crc"),
        ("encrypted_member", "encrypted_member"),
        ("zip_method", "zip_method"),
        ("local name", "header_mismatch"),
        ("local method", "header_mismatch"),
        ("local size", "header_mismatch"),
        ("local crc", "header_mismatch"),
        ("stored with two sizes", "header_mismatch"),
        ("no local header", "header_mismatch"),
        ("trailing_data", "trailing_data"),
        ("comment", "zip_comment"),
        ("prepended", "prepended_data"),
        ("directory cut", "bad_archive"),
    ],
)
def test_a_damaged_archive_is_named(tmp_path: Path, kind: str, code: str) -> None:
    whole = write(tmp_path, _damaged("nothing"), "whole.bin")
    assert codes(whole) == set()
    path = write(tmp_path, _damaged(kind))
    assert code in codes(path)
    with pytest.raises((MalformedFileError, LimitExceededError)):
        open_torch_pickle(path)


@pytest.mark.parametrize(
    "kind", ["bad_crc", "local size", "local crc", "trailing_data", "comment", "prepended", "no local header"]
)
def test_damage_hides_no_import(tmp_path: Path, kind: str) -> None:
    evil = proto(called(imported("os", "system"), text("true")))
    rebuilt = torch_like(evil, ("archive/data/0", b"\1" * 64))
    local, _ = _zip_parts(rebuilt)
    changed = bytearray(rebuilt)
    if kind == "no local header":
        # The directory points nowhere: readers that go by the local headers still find the member.
        at = changed.index(b"PK\x01\x02")
        changed[at + 42 : at + 46] = struct.pack("<I", 1)
    elif kind == "bad_crc":
        changed[local + 14] ^= 0xFF
    elif kind.startswith("local"):
        changed[local + (22 if kind == "local size" else 14)] ^= 1
    elif kind == "trailing_data":
        changed += b"more"
    elif kind == "comment":
        changed[-2:] = struct.pack("<H", 4)
        changed += b"more"
    else:
        changed[:0] = b"MZ" + b"\0" * 100
    path = write(tmp_path, bytes(changed))
    assert "os.system" in names(path)


@pytest.mark.parametrize(
    "name", ["../data.pkl", "/etc/data.pkl", "archive\\data.pkl", "archive/./data.pkl", "a//data.pkl", "a\x01/b"]
)
def test_names_that_leave_the_folder_are_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, zipped([("archive/data.pkl", proto(b"}")), (name, b"x")]))
    assert "unsafe_name" in codes(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["archive/data.pkl", "archive/DATA.pkl", "Archive/data.pkl"])
def test_two_members_of_one_name_are_named_and_both_read(tmp_path: Path, second: str) -> None:
    evil = proto(called(imported("os", "system"), text("true")))
    path = write(tmp_path, zipped([("archive/data.pkl", proto(b"}")), (second, evil)]))
    assert "duplicate_member" in codes(path)
    assert "os.system" in names(path)


def test_a_member_the_directory_leaves_out_is_read(tmp_path: Path) -> None:
    evil = proto(called(imported("os", "system"), text("true")))
    whole = zipped([("archive/data.pkl", proto(b"}"))])
    _, entry = _zip_parts(whole)
    hidden = (
        b"PK\x03\x04" + struct.pack("<5H3I2H", 20, 0, 0, 0, 33, 0, len(evil), len(evil), 9, 0) + b"a/evil.pk" + evil
    )
    data = bytearray(whole[:entry] + hidden + whole[entry:])
    end = data.rindex(b"PK\x05\x06")
    data[end + 16 : end + 20] = struct.pack("<I", entry + len(hidden))
    path = write(tmp_path, bytes(data))
    assert "hidden_bytes" in codes(path)
    assert "os.system" in names(path)


def test_bombs_are_bounded(tmp_path: Path) -> None:
    path = write(
        tmp_path, zipped([("archive/data.pkl", proto(b"}")), ("archive/x", bytes(2**24))], zipfile.ZIP_DEFLATED)
    )
    assert "compression_ratio" in codes(path)
    inner = zipped([(f"a/{i}", bytes(2**25)) for i in range(6)], zipfile.ZIP_DEFLATED)
    path = write(tmp_path, zipped([("archive/data.pkl", proto(b"}")), ("archive/x.zip", inner)]))
    problem = next(p for p in inspect_pickle(path).problems if p.code == "limit_exceeded")
    assert "inflated bytes" in problem.message
    deep = proto(called(imported("os", "system"), text("true")))
    for _ in range(10):
        deep = zipped([("x", deep)])
    assert {"nested_archive", "limit_exceeded"} <= codes(write(tmp_path, deep))


def test_a_doubling_pickle_stays_small(tmp_path: Path) -> None:
    """Two hundred lists, each twice in the next: printed or copied it would have 2^200 items."""
    doubled = b"]" + b"\x94" + b"".join(b"0]" + b"h" + bytes([i]) + b"ah" + bytes([i]) + b"a\x94" for i in range(200))
    path = write(tmp_path, torch_like(proto(b"}" + text("x") + doubled + b"s")))
    file = open_torch_pickle(path)
    assert (file.entries, file.others) == ({}, {"x": "a list of 2"})


def test_a_file_of_two_formats_is_named(tmp_path: Path) -> None:
    """Torch sees the pickle at the front, an unzipping tool the archive at the end."""
    evil = proto(called(imported("os", "system"), text("true")))
    path = write(tmp_path, evil + saved(state()))
    assert sniff(path) == "pickle"
    assert {"polyglot", "prepended_data"} <= codes(path)
    assert "os.system" in names(path)


def test_torchscript_and_foreign_members_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, torch_like(proto(b"}"), ("archive/code/__torch__.py", b"def f(): pass")))
    assert "torchscript" in codes(path)
    path = write(tmp_path, torch_like(proto(b"}"), ("other/data.pkl", proto(b"}"))))
    assert "several_roots" in codes(path)


def test_what_is_no_pickle_says_so(tmp_path: Path) -> None:
    for data, code in (
        (b"", "not_a_pickle"),
        (b"<html>", "not_a_pickle"),
        (gzip.compress(b"x"), "compressed_stream"),
        (bytes(1000), "not_a_pickle"),
    ):
        path = write(tmp_path, data)
        assert codes(path) == {code}
        assert inspect_pickle(path).kind == "other"
        with pytest.raises(MalformedFileError):
            open_torch_pickle(path)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "README.md", "tokenizer.json", "x"])
def test_the_name_of_a_file_does_not_matter(tmp_path: Path, name: str, pack) -> None:  # type: ignore[no-untyped-def]
    evil = proto(called(imported("os", "system"), text("true")))
    assert sniff(write(tmp_path, evil, name)) == "pickle"
    assert looks_like_pickle(tmp_path / name)
    assert sniff(write(tmp_path, saved(state()), name)) == "zip"
    assert looks_like_pickle(tmp_path / name)
    assert sniff(write(tmp_path, saved(state(), zipped=False), name)) == "pickle"
    assert sniff(write(tmp_path, pack({}), name)) == "safetensors"
    assert not looks_like_pickle(tmp_path / name)
    assert sniff(write(tmp_path, b"# A title\n\nSome text.\n", name)) == "other"
    assert sniff(write(tmp_path, b"{}", name)) == "other"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    assert sniff(write(tmp_path, buffer.getvalue(), name)) == "tar"

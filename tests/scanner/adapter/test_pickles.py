"""Pickles are read, never run: what is named, what is refused, and that tensors come out as torch sees them."""

from __future__ import annotations

import io
import json
import pickle
import resource
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scanner.adapter import open_safetensors, open_weights
from scanner.adapter.pickles import inspect_pickle, sniff
from scanner.adapter.torchfile import open_torch_pickle
from scanner.errors import LorascopeError, MalformedFileError, UnsupportedError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
BOTH = pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])


def save(value: Any, path: Path, as_zip: bool = True) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, path, _use_new_zipfile_serialization=as_zip)
    return path


def names(path: Path, level: str = "dangerous") -> set[str]:
    return {f"{item.module}.{item.name}" for item in inspect_pickle(path).globals if item.level == level}


def codes(path: Path) -> set[str]:
    return {problem.code for problem in inspect_pickle(path).problems}


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path: Path, dtype: torch.dtype, as_zip: bool) -> None:
    values = (torch.randn(6, 5) * 3).to(dtype)
    path = save({"w": values, "s": values[0, 0].clone()}, tmp_path / "a.bin", as_zip)
    report = inspect_pickle(path)
    assert (report.kind, report.dangerous, report.problems) == ("torch_zip" if as_zip else "torch_legacy", (), ())
    file = open_torch_pickle(path)
    assert [entry.shape for entry in file] == [(6, 5), ()]
    assert file.scalar("s") == float(values[0, 0])
    if dtype.is_floating_point:
        wanted = values if dtype == torch.float64 else values.to(torch.float32)
        np.testing.assert_array_equal(file.floats("w"), wanted.numpy())
    else:
        with pytest.raises(MalformedFileError, match="dtype"):
            file.floats("w")


@BOTH
def test_views_share_a_storage(tmp_path: Path, as_zip: bool) -> None:
    whole = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    views = {"whole": whole, "t": whole.T, "part": whole[1:4, 2:9:3], "row": whole[2], "empty": whole[:0]}
    file = open_torch_pickle(save(views, tmp_path / "a.bin", as_zip))
    for name, view in views.items():
        np.testing.assert_array_equal(file.floats(name), view.numpy())


def test_module_state_dicts_parameters_and_nesting(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    state = layer.state_dict()  # an OrderedDict with versions as an attribute
    assert hasattr(state, "_metadata")
    file = open_torch_pickle(save(state, tmp_path / "a.bin"))
    np.testing.assert_array_equal(file.floats("weight"), layer.weight.detach().numpy())
    file = open_torch_pickle(save({"epoch": 3, "model": dict(layer.named_parameters())}, tmp_path / "b.bin"))
    np.testing.assert_array_equal(file.floats("model.bias"), layer.bias.detach().numpy())
    assert open_torch_pickle(save({"w": torch.ones(2), "epoch": 3}, tmp_path / "c.bin")).others == ("epoch",)


def test_bin_and_safetensors_of_one_adapter(tmp_path: Path, save_peft: Callable[..., Any]) -> None:
    from peft import LoraConfig
    from safetensors.torch import load_file

    from scanner.adapter import parse_config, read_json_object, view_adapter
    from scanner.weights import scan_weights

    save_peft(tmp_path, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    weights = tmp_path / "adapter_model.safetensors"
    for dtype in (torch.float32, torch.bfloat16):
        from safetensors.torch import save_file

        tensors = {name: tensor.to(dtype) for name, tensor in load_file(weights).items()}
        save_file(tensors, tmp_path / "a.safetensors")
        save(tensors, tmp_path / "a.bin")
        config = parse_config(read_json_object(tmp_path / "adapter_config.json", 10**6))
        views = [view_adapter(open_weights([tmp_path / name], name), config, 64) for name in ("a.safetensors", "a.bin")]
        assert views[0].coverage == views[1].coverage == 1.0
        by_name = [{u.module: u for u in view.updates} for view in views]
        for module, update in by_name[0].items():
            for ours, theirs in zip(update.read(), by_name[1][module].read(), strict=True):
                np.testing.assert_array_equal(ours, theirs)
        scans = [scan_weights(sorted(view.updates, key=lambda u: u.module)) for view in views]
        assert scans[0] == scans[1]


class Calls:
    """Pickles into a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def payloads() -> dict[str, tuple[bytes, str]]:
    """Every family of bypass that scanners of pickles have fallen for: (stream, what must be named)."""
    touch = "S'touch pwned'\n"
    made = {
        "os.system": (f"cos\nsystem\n({touch}tR.", "os.system"),
        "posix.system": (f"cposix\nsystem\n({touch}tR.", "posix.system"),
        "subprocess": (f"csubprocess\nPopen\n({touch}tR.", "subprocess.Popen"),
        "eval": ("cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        "exec, old name": ("c__builtin__\nexec\n(S'1'\ntR.", "__builtin__.exec"),
        "getattr": ("cbuiltins\ngetattr\n(cos\npath\nS'join'\ntR.", "builtins.getattr"),
        "__import__": ("c__builtin__\n__import__\n(S'os'\ntR.", "__builtin__.__import__"),
        "importlib": ("cimportlib\nimport_module\n(S'os'\ntR.", "importlib.import_module"),
        "attrgetter": ("coperator\nattrgetter\n(S'system'\ntR.", "operator.attrgetter"),
        "partial": ("cfunctools\npartial\n(cos\nsystem\ntR.", "functools.partial"),
        "runpy": ("crunpy\nrun_path\n(S'x.py'\ntR.", "runpy.run_path"),
        "pip": ("cpip\nmain\n((S'install'\nltR.", "pip.main"),
        "pkgutil": ("cpkgutil\nresolve_name\n(S'os:system'\ntR.", "pkgutil.resolve_name"),
        "torch.load": ("ctorch\nload\n(S'x'\ntR.", "torch.load"),
        "torch.hub": ("ctorch.hub\nload\n(S'x'\ntR.", "torch.hub.load"),
        "torch jit gadget": (
            "ctorch.jit.unsupported_tensor_ops\nexecWrapper\n(S'1'\ntR.",
            "torch.jit.unsupported_tensor_ops.execWrapper",
        ),
        "torch run": ("ctorch.utils.collect_env\nrun\n(S'id'\ntR.", "torch.utils.collect_env.run"),
        "numpy gadget": (
            "cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR.",
            "numpy.testing._private.utils.runstring",
        ),
        "numpy load": ("cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        "INST": (f"({touch}ios\nsystem\n.", "os.system"),
        "OBJ": (f"(cos\nsystem\n{touch}o.", "os.system"),
        "NEWOBJ": (b"\x80\x02cos\nsystem\n)\x81.", "os.system"),
        "copyreg": ("ccopyreg\n_reconstructor\n(cos\nsystem\ntR.", "copyreg._reconstructor"),
        "EXT1": (b"\x80\x02\x82\x07.", "copyreg.extension 7"),
        "EXT4": (b"\x80\x02\x84\x07\x00\x00\x00.", "copyreg.extension 7"),
        "dotted name below an allowed module": (
            b"\x80\x04\x8c\x05torch\x8c\x0dhub.load.x.yz\x93.",
            "torch.hub.load.x.yz",
        ),
        "names from the memo": (
            b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93.",
            "os.system",
        ),
        "names computed by a call": (
            b"\x80\x04c_codecs\nencode\n\x8c\x02os\x85R\x8c\x06system\x93.",
            "<computed>.<computed>",
        ),
        "memo overwritten": (
            b"\x80\x04\x8c\x05torch\x94\x8c\x02osq\x000h\x00\x8c\x06system\x93.",
            "os.system",
        ),
        "call of a result": (b"\x80\x02ccollections\nOrderedDict\n)R)R.", "<computed>.<computed>"),
        "never called": ("cos\nsystem\n.", "os.system"),
        "import in a dropped value": ("cos\nsystem\n0N.", "os.system"),
        "import after a mark that is dropped": ("(cos\nsystem\n1N.", "os.system"),
    }
    return {name: (code if isinstance(code, bytes) else code.encode(), named) for name, (code, named) in made.items()}


PAYLOADS = payloads()


def as_archive(stream: bytes, member: str = "archive/data.pkl") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, stream)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


@pytest.mark.parametrize("packed", ["raw", "zip", "renamed", "nested", "behind a harmless one"])
@pytest.mark.parametrize("name", PAYLOADS)
def test_every_payload_is_named_and_none_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, packed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    stream, named = PAYLOADS[name]
    content = {
        "raw": lambda: stream,
        "zip": lambda: as_archive(stream),
        "renamed": lambda: as_archive(stream, "archive/weights.txt") if stream[:1] in b"c(\x80" else as_archive(stream),
        "nested": lambda: as_archive(as_archive(stream), "archive/more"),
        "behind a harmless one": lambda: b"}." + stream,
    }[packed]()
    path = tmp_path / "adapter_model.bin"
    path.write_bytes(content)
    assert named in names(path)
    with pytest.raises(LorascopeError) as caught:
        open_torch_pickle(path)
    if packed in ("raw", "zip"):
        assert (type(caught.value), caught.value.code) == (UnsupportedError, "dangerous_pickle")
    assert {item.name for item in tmp_path.iterdir()} == {"adapter_model.bin"}


def test_pythons_own_pickles_of_calls(tmp_path: Path) -> None:
    for protocol in range(6):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps(Calls(print, "pwned"), protocol))
        assert names(path) in ({"builtins.print"}, {"__builtin__.print"})


STRUCTURES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a wrong checksum": (lambda data: data.replace(b"weightX", b"weightY", 1), "bad_crc"),
    "bytes before the archive": (lambda data: b"#!/bin/sh\n" + data, "two_formats"),
    "another name in the local header": (
        lambda data: data.replace(b"a/data.pkl", b"a/dota.pkl", 1),
        "header_mismatch",
    ),
    "no directory": (lambda data: data[: data.rindex(b"PK\x05\x06")], "bad_zip"),
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_archives_that_readers_disagree_about(tmp_path: Path, case: str) -> None:
    change, code = STRUCTURES[case]
    path = save({"weightX": torch.ones(3)}, tmp_path / "a.bin")
    assert codes(path) == set()
    path.write_bytes(change(path.read_bytes()))
    assert code in codes(path)
    with pytest.raises(LorascopeError):
        open_torch_pickle(path)


def test_a_member_that_occurs_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        for stream in (b"}.", b"]."):
            archive.writestr("archive/data.pkl", stream)
    assert "duplicate_member" in codes(path)


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(60 * 2**20))
    assert "limit_exceeded" in codes(path)


def test_compressed_storages_are_read(tmp_path: Path) -> None:
    path = save({"w": torch.arange(1000, dtype=torch.float32)}, tmp_path / "a.bin")
    packed = tmp_path / "b.bin"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name))
    np.testing.assert_array_equal(open_torch_pickle(packed).floats("w"), np.arange(1000, dtype="f4"))


def test_trailing_bytes_and_tar(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(b"}.\xff\xff")
    assert codes(path) == {"trailing_bytes"}
    with tarfile.open(tmp_path / "old.pt", "w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo("pickle")
        stream = PAYLOADS["os.system"][0]
        info.size = len(stream)
        archive.addfile(info, io.BytesIO(stream))
    assert sniff(tmp_path / "old.pt") == "tar"
    assert names(tmp_path / "old.pt") == {"os.system"}


class Reducer:
    """Writes a tensor's rebuilding by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Path:
        numbers = lambda values: b"(" + b"".join(f"I{v}\n".encode() for v in values) + b"t"  # noqa: E731
        stream = (
            b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
            b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuI4\ntQ"
            + f"I{offset}\n".encode() + numbers(shape) + numbers(strides) + b"I00\nccollections\nOrderedDict\n)RtRs."
        )  # fmt: skip
        with zipfile.ZipFile(self.path, "w") as archive:
            archive.writestr("archive/data.pkl", stream)
            archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
        return self.path


def test_tensors_stay_inside_of_their_storage(tmp_path: Path) -> None:
    make = Reducer(tmp_path / "a.bin").write
    np.testing.assert_array_equal(open_torch_pickle(make(0, (2, 2), (2, 1))).floats("w"), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(open_torch_pickle(make(1, (3,), (1,))).floats("w"), [2, 3, 4])
    for offset, shape, strides in [
        (2, (3,), (1,)),
        (0, (2, 2), (3, 1)),
        (0, (10**6,), (0,)),
        (5, (1,), (1,)),
        (0, (5,), (1,)),
    ]:
        with pytest.raises(MalformedFileError):
            open_torch_pickle(make(offset, shape, strides))


def test_trainer_files_are_known(tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    path = save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    assert (names(path), codes(path)) == (set(), set())
    from transformers import TrainingArguments

    path = save(TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[]), tmp_path / "training_args.bin")
    assert names(path) == set()
    assert "transformers.training_args.TrainingArguments" in names(path, "trainer")
    with pytest.raises(UnsupportedError, match="TrainingArguments"):
        open_torch_pickle(path)
    state = {"python": (3, (1, 2), None), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    path = save(state, tmp_path / "rng_state.pth")
    assert (names(path), codes(path)) == (set(), set())


def test_real_bin_adapters(data_dir: Path) -> None:
    files = sorted((data_dir / "adapters").glob("*/*.bin"))
    assert files
    for file in files:
        assert names(file) == set()
        assert codes(file) == set()
        assert all(
            np.isfinite(opened).all() for opened in map(open_torch_pickle(file).floats, open_torch_pickle(file).entries)
        )


VALID = pickle.dumps(OrderedDict(a=[1, 2.5, None, True, b"x", {"k": ("v",)}]), 2)


@given(st.binary(max_size=300) | st.tuples(st.integers(0, len(VALID)), st.binary(max_size=4)).map(
    lambda cut: VALID[: cut[0]] + cut[1] + VALID[cut[0] :]
))  # fmt: skip
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_a_report_or_our_own_error(tmp_path: Path, content: bytes) -> None:
    for body in (content, as_archive(content)):
        path = tmp_path / "x.bin"
        path.write_bytes(body)
        inspect_pickle(path)
        try:
            open_torch_pickle(path)
        except LorascopeError as error:
            assert json.dumps(error.message)


def test_safetensors_under_another_name(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    path = tmp_path / "adapter_model.bin"
    path.write_bytes(encode({"w": np.ones((2, 2), "f4")}))
    assert sniff(path) == "safetensors"
    np.testing.assert_array_equal(open_weights([path], path.name).floats("w"), np.ones((2, 2)))
    save({"w": torch.ones(2)}, path)
    with pytest.raises(UnsupportedError, match="zip"):
        open_weights([path], "adapter_model.safetensors")
    with pytest.raises(LorascopeError):
        open_safetensors(path)


def bombs() -> dict[str, bytes]:
    """Small files that would take a naive reader forever, or all memory."""
    legacy = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
    many = b"h\x00" * 50_000
    pairs = b"]q\x00(" + b"K\x01K\x02\x86" * 20_000 + b"e0"
    shared = (
        b"}(X\x01\x00\x00\x00aK\x01" + b"".join(b"X\x04\x00\x00\x00%04dK\x01" % n for n in range(5_000)) + b"uq\x000"
    )
    outer = b"}(" + b"".join(b"X\x04\x00\x00\x00%04dh\x00" % n for n in range(5_000)) + b"u."
    return {
        "a list in itself": legacy + b"\x80\x02]q\x00(" + many + b"e.\x80\x02].",
        "one list for many dicts": b"\x80\x02" + pairs + b"ccollections\nOrderedDict\nq\x01("
        + b"h\x01h\x00\x85R" * 50_000 + b"t.",
        "one dict under many keys": as_archive(b"\x80\x02" + shared + outer),
        "one tuple for many shapes": b"\x80\x02(" + b"K\x01" * 50_000 + b"tq\x00ctorch\nSize\nq\x01("
        + b"h\x01h\x00\x85R0" * 50_000 + b"t.",
        "empty dicts": b"\x80\x02(" + b"}" * 1_600_000 + b"t.",
    }  # fmt: skip


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_early(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bombs()[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LorascopeError):
        open_torch_pickle(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 * 1024


def test_members_over_the_same_bytes_are_refused(tmp_path: Path) -> None:
    data = as_archive(b"}.")
    end = data.rindex(b"PK\x05\x06")
    (start,) = struct.unpack("<I", data[end + 16 : end + 20])
    entry = data[start : data.index(b"PK\x01\x02", start + 4)]
    size = end - start + len(entry)
    path = tmp_path / "a.bin"
    path.write_bytes(
        data[:end] + entry + data[end : end + 8] + struct.pack("<HHII", 3, 3, size, start) + data[end + 20 :]
    )
    assert "bad_zip" in codes(path)

"""What torch and PEFT write is read as they read it, and nothing in it is called a danger."""

from __future__ import annotations

import io
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pickle_samples import LORA, saved, state, torch_like, zipped

from scanner.adapter.pickles import TorchFile, inspect_pickle, open_torch_pickle
from scanner.adapter.safetensors import SafetensorsFile, TensorEntry, open_safetensors
from scanner.adapter.tensors import TensorFile
from scanner.errors import LimitExceededError, MalformedFileError, UnsupportedError

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64", torch.bool: "BOOL",
    torch.complex64: "C64", torch.complex128: "C128",
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")


def opened(tmp_path: Path, value: Any, *, zipped: bool = True, protocol: int = 2) -> TorchFile:
    path = tmp_path / "adapter_model.bin"
    path.write_bytes(saved(value, zipped=zipped, protocol=protocol))
    report = inspect_pickle(path)
    assert report.kind == ("torch_zip" if zipped else "torch_legacy")
    assert report.problems == ()
    assert {g.level for g in report.globals} <= {"allowed"}
    return open_torch_pickle(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", list(DTYPES), ids=lambda d: str(d).removeprefix("torch."))
def test_every_dtype(tmp_path: Path, dtype: torch.dtype, zipped: bool) -> None:
    values = torch.arange(24).reshape(4, 6).to(dtype)
    file = opened(tmp_path, {"a": values, "one": values[1, 1].clone()}, zipped=zipped)
    entry = file.entries["a"]
    assert (entry.dtype, entry.shape, entry.size_bytes) == (DTYPES[dtype], (4, 6), 24 * values.element_size())
    if entry.dtype in FLOATS:
        got = file.floats("a")
        assert got.dtype == (np.float64 if dtype == torch.float64 else np.float32)
        np.testing.assert_array_equal(got, values.to(torch.float64).numpy())
        np.testing.assert_array_equal(np.concatenate(list(file.chunks("a", 5))), got.reshape(-1))
    if entry.dtype in FLOATS or entry.dtype.startswith(("I", "U")):
        assert file.scalar("one") == 7
    if entry.dtype.startswith(("I", "U")) or entry.dtype == "BOOL":
        with pytest.raises(MalformedFileError, match="not a float"):
            file.floats("a")


@pytest.mark.parametrize("dtype", [d for d, name in DTYPES.items() if name.startswith(("F", "BF"))], ids=str)
def test_every_code_of_a_float_is_read_as_from_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    """All 65,536 (or 256) bit patterns, NaNs and denormals included, give the same bits."""
    width = dtype.itemsize
    raw = torch.arange(256 ** min(width, 2), dtype=torch.int32).to(torch.uint16 if width > 1 else torch.uint8)
    if width > 2:
        raw = torch.randint(0, 256, (4096 * width,), dtype=torch.uint8)
    values = raw.view(dtype)
    file = opened(tmp_path, {"a": values})
    size = values.numel() * width
    plain = np.frombuffer(values.view(torch.uint8).numpy().tobytes(), np.uint8)
    other = SafetensorsFile(plain, {"a": TensorEntry("a", DTYPES[dtype], (values.numel(),), 0, size)}, {})
    try:
        wanted = other.floats("a")
    except MalformedFileError as error:  # a type that neither reader decodes
        with pytest.raises(MalformedFileError, match=str(error)):
            file.floats("a")
    else:
        assert file.floats("a").tobytes() == wanted.tobytes()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", range(2, 6))
def test_views_strides_and_shared_storages(tmp_path: Path, zipped: bool, protocol: int) -> None:
    whole = torch.randn(6, 8, dtype=torch.float64).to(torch.bfloat16)
    views = {
        "whole": whole,
        "transposed": whole.t(),
        "rows": whole[2:4],
        "columns": whole[:, 1::3],
        "permuted": whole.reshape(2, 3, 8).permute(2, 0, 1),
        "diagonal": whole.diagonal(),
        "one": whole[5, 7],
        "none": whole[:0],
        "tied": whole,
    }
    file = opened(tmp_path, views, zipped=zipped, protocol=protocol)
    assert list(file.entries) == list(views)
    for name, view in views.items():
        assert file.entries[name].shape == tuple(view.shape)
        np.testing.assert_array_equal(file.floats(name), view.float().numpy())
        chunks = list(file.chunks(name, 3))
        assert sum(chunk.size for chunk in chunks) == view.numel()
    spans = [(entry.begin, entry.end) for entry in file]
    assert all(before[1] == after[0] for before, after in pairwise(spans))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_parameters_buffers_and_module_state(tmp_path: Path, zipped: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    file = opened(tmp_path, module.state_dict(), zipped=zipped)  # an OrderedDict with `_metadata`
    assert list(file.entries) == list(module.state_dict())
    file = opened(tmp_path, {"w": module[0].weight}, zipped=zipped)
    np.testing.assert_array_equal(file.floats("w"), module[0].weight.detach().numpy())


def test_one_level_of_dicts_is_flattened_only_without_tensors_above(tmp_path: Path) -> None:
    inner = state()
    file = opened(tmp_path, {"state_dict": inner, "epoch": 3, "lr": 0.5, "args": {"x": {"y": torch.ones(1)}}})
    assert set(file.entries) == {f"state_dict.{name}" for name in inner}
    assert file.others == {"epoch": "3", "lr": "0.5", "args.x": "a dict of 1"} or "epoch" in file.others
    file = opened(tmp_path, {**inner, "more": {"hidden": torch.ones(1)}, 7: torch.ones(2), "note": "a\nb"})
    assert set(file.entries) == set(inner)
    assert file.others == {"more": "a dict of 1", "[7]": "a tensor [2]", "note": "a\\nb"}


def test_what_is_no_dict_is_unsupported(tmp_path: Path) -> None:
    for value in ([torch.ones(1)], torch.ones(1), 5):
        with pytest.raises(UnsupportedError) as caught:
            opened(tmp_path, value)
        assert caught.value.code == "no_state_dict"


def test_a_names_collision_is_malformed(tmp_path: Path) -> None:
    with pytest.raises(MalformedFileError, match="occurs twice"):
        opened(tmp_path, {"a.b": {"c": torch.ones(1)}, "a": {"b.c": torch.ones(1)}})
    with pytest.raises(LimitExceededError, match="characters of a tensor's name"):
        opened(tmp_path, {"n" * 513: torch.ones(1)})
    with pytest.raises(LimitExceededError, match="dimensions of a tensor"):
        opened(tmp_path, {"n": torch.ones((1,) * 9)})


def test_expanded_tensors_are_malformed(tmp_path: Path) -> None:
    with pytest.raises(MalformedFileError, match="repeats its storage"):
        opened(tmp_path, {"a": torch.ones(1).expand(1_000_000, 1_000_000)})
    base = torch.ones(1000)
    with pytest.raises(MalformedFileError, match=r"span .* bytes of storages"):
        opened(tmp_path, {str(i): base for i in range(20)})


def _edited(before: bytes, after: bytes, value: Any = None) -> bytes:
    """A torch archive whose data.pkl was edited, with a right checksum."""
    import zipfile

    whole = saved(value or {"a": torch.arange(4.0)})
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    pickled = members[0][1]
    assert pickled.count(before) == 1, pickled
    return zipped([(members[0][0], pickled.replace(before, after)), *members[1:]])


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (b"QK\x00K\x04", b"QK\x01K\x04", "reaches to byte 20"),  # storage offset
        (b"QK\x00K\x04", b"QK\x00K\x05", "reaches to byte 20"),  # shape
        (b"K\x01\x85", b"K\x02\x85", "reaches to byte 28"),  # stride
        (b"K\x01\x85", b"K\x00\x85", ""),  # stride 0 within the storage: as large as it, so no bomb
        (b"cpuq\x06K\x04", b"cpuq\x06K\x05", "has a storage of 20 bytes, not 16"),
        (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009", "a storage that the file does not have"),
        (b"QK\x00K\x04", b"QK\x00\x8a\x07\xff\xff\xff\xff\xff\xff\x3f", "reaches to byte"),
    ],
)
def test_views_must_lie_in_their_storage(tmp_path: Path, before: bytes, after: bytes, why: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(_edited(before, after))
    if not why:
        assert open_torch_pickle(path).floats("a").tolist() == [0.0] * 4
        return
    with pytest.raises(MalformedFileError, match=why):
        open_torch_pickle(path)


def test_byte_order(tmp_path: Path) -> None:
    import zipfile

    values = {"a": torch.randn(3, 5, dtype=torch.float64).half().t(), "n": torch.tensor(258)}
    whole = saved(values)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["archive/byteorder"] = b"big"
    for key, dtype in (("0", "<u2"), ("1", "<u8")):
        name = f"archive/data/{key}"
        members[name] = np.frombuffer(members[name], dtype).byteswap().tobytes()
    path = tmp_path / "a.bin"
    path.write_bytes(zipped(list(members.items())))
    file = open_torch_pickle(path)
    np.testing.assert_array_equal(file.floats("a"), values["a"].float().numpy())
    assert file.scalar("n") == 258
    members["archive/byteorder"] = b"middle"
    path.write_bytes(zipped(list(members.items())))
    with pytest.raises(MalformedFileError, match="byte order"):
        open_torch_pickle(path)


def test_deflated_archives_are_read(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(io.BytesIO(saved(state()))) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    path = tmp_path / "a.bin"
    path.write_bytes(zipped(members, zipfile.ZIP_DEFLATED))
    assert inspect_pickle(path).problems == ()
    file = open_torch_pickle(path)
    for name, tensor in state().items():
        np.testing.assert_array_equal(file.floats(name), tensor.numpy())


@pytest.mark.parametrize("damage", ["cut", "longer", "fewer keys", "more keys"])
def test_storages_of_the_old_format_must_cover_the_file(tmp_path: Path, damage: str) -> None:
    whole = saved({"a": torch.arange(4.0)}, zipped=False)
    if damage == "cut":
        whole = whole[:-1]
    elif damage == "longer":
        whole += b"\0"
    else:
        key = whole[whole.index(b"storageq") :].split(b"X", 2)[1]
        at = whole.rindex(b"]q")
        tail = whole[at:]
        if damage == "fewer keys":
            tail = b"]." + tail[tail.index(b".") + 1 :]
        else:
            tail = tail.replace(b"a.", b"aX\x01\x00\x00\x00za.", 1)
        assert key
        whole = whole[:at] + tail
    path = tmp_path / "a.bin"
    path.write_bytes(whole)
    with pytest.raises(MalformedFileError):
        open_torch_pickle(path)


def test_a_state_dict_without_tensors(tmp_path: Path) -> None:
    file = opened(tmp_path, {})
    assert (file.entries, list(file)) == ({}, [])
    path = tmp_path / "b.bin"
    path.write_bytes(torch_like(b"\x80\x02}."))
    assert open_torch_pickle(path).entries == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_peft_files_of_both_kinds_give_equal_arrays(
    tmp_path: Path, save_peft: Any, zipped: bool, dtype: torch.dtype
) -> None:
    from peft import LoraConfig, TaskType
    from safetensors.torch import load_file, save_file

    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"], task_type=TaskType.CAUSAL_LM
    )
    model = save_peft(tmp_path, config)
    model.to(dtype)
    model.save_pretrained(tmp_path, safe_serialization=True)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    save_file(tensors, path)
    one = open_safetensors(path)
    file = opened(tmp_path, tensors, zipped=zipped)
    assert {e.name: (e.dtype, e.shape, e.size_bytes) for e in one} == {
        e.name: (e.dtype, e.shape, e.size_bytes) for e in file
    }
    for name in one.entries:
        left, right = one.floats(name), file.floats(name)
        assert left.dtype == right.dtype and left.tobytes() == right.tobytes()


def test_it_is_a_tensor_file(tmp_path: Path) -> None:
    file: TensorFile = opened(tmp_path, state())
    assert [entry.name for entry in file] == list(state())
    assert file.metadata == {}


def test_what_trainers_leave_is_data(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    rng = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.random.get_rng_state()}
    best = {"best": np.float64(0.5), "names": {"a", "b"}, "raw": b"bytes", "counts": bytearray(b"x")}
    for value in (TrainingArguments(str(tmp_path)), optimizer.state_dict(), schedule.state_dict(), rng, best):
        for form in (True, False):
            for protocol in (2, 4):
                path = tmp_path / "x.bin"
                path.write_bytes(saved(value, zipped=form, protocol=protocol))
                report = inspect_pickle(path)
                assert report.dangerous == (), report
                assert report.problems == (), report


def test_trainer_state_is_no_adapter(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(saved({"a": torch.ones(2), "rng": np.random.get_state()}))
    with pytest.raises(UnsupportedError, match="which no tensor needs"):
        open_torch_pickle(path)


def test_real_adapters(data_dir: Path) -> None:
    found = sorted((data_dir / "adapters").glob("*/*.bin"))
    assert found
    for path in found:
        report = inspect_pickle(path)
        assert (report.kind, report.problems, report.dangerous) == ("torch_zip", (), ())
        file = open_torch_pickle(path)
        wanted = torch.load(path, weights_only=True, map_location="cpu")
        assert list(file.entries) == list(wanted)
        for name, tensor in wanted.items():
            np.testing.assert_array_equal(file.floats(name), tensor.numpy())


def test_real_safetensors_are_no_pickles(data_dir: Path) -> None:
    for path in sorted((data_dir / "adapters").glob("*/*.safetensors")):
        assert inspect_pickle(path).globals == ()
        assert inspect_pickle(path).kind == "other"


def test_lora_names_survive(tmp_path: Path) -> None:
    assert f"{LORA}.lora_A.weight" in opened(tmp_path, state()).entries

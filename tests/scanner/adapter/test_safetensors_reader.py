"""The safetensors reader against the official library, and against files that break the format."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from scanner.adapter import open_safetensors
from scanner.adapter.safetensors import MAX_HEADER_BYTES
from scanner.errors import LimitExceededError, MalformedFileError

REFUSALS = (MalformedFileError, LimitExceededError)
EVERY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__"
)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def tensor_sets(draw: st.DrawFn) -> dict[str, np.ndarray]:
    tensors = {}
    for name in draw(st.lists(names, max_size=5, unique=True)):
        shape, dtype = draw(shapes), draw(st.sampled_from(["<f8", "<f4", "<f2"]))
        seed = draw(st.integers(0, 2**32 - 1))
        # Random bits, not random numbers: NaN payloads, infinities and subnormal values have to survive as well.
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        tensors[name] = np.frombuffer(np.random.default_rng(seed).bytes(size), dtype=dtype).reshape(shape)
    return tensors


@given(tensor_sets(), st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
@EVERY
def test_reads_what_the_official_library_writes(
    tmp_path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, metadata=metadata or None)
    file = open_safetensors(path)
    assert file.metadata == metadata
    assert set(file.entries) == set(tensors)
    for name, wanted in tensors.items():
        got = file.floats(name)
        assert got.shape == wanted.shape
        assert got.dtype == (np.float64 if wanted.dtype == np.float64 else np.float32)
        np.testing.assert_array_equal(got, wanted.astype(got.dtype))


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=40))
@EVERY
def test_bfloat16_is_read_bit_for_bit(tmp_path: Path, bits: list[int]) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    tensor = torch.tensor(bits, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    save_torch({"t": tensor}, tmp_path / "b.safetensors")
    got = open_safetensors(tmp_path / "b.safetensors").floats("t")
    np.testing.assert_array_equal(got, tensor.to(torch.float32).numpy())


def _valid(encode: Callable[..., bytes]) -> bytes:
    rng = np.random.default_rng(3)
    return encode(
        {"m.lora_A.weight": rng.normal(size=(2, 3)).astype("f4"), "m.lora_B.weight": rng.normal(size=(4, 2))},
        {"format": "pt"},
    )


def _tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    file = open_safetensors(path)
    found = {}
    for entry in file:
        if entry.dtype in ("F64", "F32", "F16", "BF16"):
            file.floats(entry.name)  # must not raise either
        found[entry.name] = (entry.dtype, entry.shape, file._data[entry.begin : entry.end].tobytes())
    return found


@given(st.data())
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_refused_or_read_as_the_official_library_reads_it(
    tmp_path: Path, encode: Callable[..., bytes], data: st.DataObject
) -> None:
    content = bytearray(_valid(encode))
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(content) - 1)) if content else 0
        match data.draw(st.sampled_from(["flip", "cut", "extend", "insert", "delete"])):
            case "flip" if content:
                content[where] = data.draw(st.integers(0, 255))
            case "cut":
                del content[where:]
            case "extend":
                content += data.draw(st.binary(min_size=1, max_size=9))
            case "insert":
                content[where:where] = data.draw(st.binary(min_size=1, max_size=3))
            case "delete":
                del content[where : where + 2]
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    try:
        ours = _tensors(path)
    except REFUSALS:
        return
    # Accepted: then the official library has to accept it as well, and see the same tensors.
    with safe_open(path, framework="numpy") as official:
        assert set(official.keys()) == set(ours)
        for name, (_, shape, raw) in ours.items():
            theirs = official.get_slice(name)
            assert tuple(theirs.get_shape()) == shape
            if theirs.get_dtype() in ("F64", "F32", "F16"):
                assert official.get_tensor(name).tobytes() == raw


F32 = "F32"


def entry(begin: Any, end: Any, shape: Any = (1,), dtype: Any = F32) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "body_bytes"),
    [
        pytest.param({"a": entry(0, 4), "b": entry(0, 4)}, 4, id="two tensors on the same bytes"),
        pytest.param({"a": entry(0, 8, (2,)), "b": entry(4, 8)}, 8, id="overlap"),
        pytest.param({"a": entry(0, 4), "b": entry(8, 12)}, 12, id="gap"),
        pytest.param({"a": entry(4, 8)}, 8, id="gap at the front"),
        pytest.param({"a": entry(0, 4)}, 8, id="bytes after the last tensor"),
        pytest.param({"a": entry(0, 8, (2,))}, 4, id="ends behind the file"),
        pytest.param({"a": entry(-4, 0)}, 0, id="negative offset"),
        pytest.param({"a": entry(4, 0)}, 4, id="end before begin"),
        pytest.param({"a": entry(0.0, 4.0)}, 4, id="float offsets"),
        pytest.param({"a": entry(False, 4)}, 4, id="boolean offset"),
        pytest.param({"a": entry("0", "4")}, 4, id="text offsets"),
        pytest.param({"a": entry(0, 10**30)}, 4, id="offset beyond 64 bits"),
        pytest.param({"a": entry(0, 4, (1.0,))}, 4, id="float shape"),
        pytest.param({"a": entry(0, 4, (-1, -1))}, 4, id="negative shape"),
        pytest.param({"a": entry(0, 4, (2,))}, 4, id="shape and span differ"),
        pytest.param({"a": entry(0, 0, (0, 2**61, 2**61))}, 0, id="a zero hides an absurd shape"),
        pytest.param({"a": entry(0, 4, (1,) * 9)}, 4, id="nine dimensions"),
        pytest.param({"a": entry(0, 4, dtype="F31")}, 4, id="unknown dtype"),
        pytest.param({"a": entry(0, 4, dtype=["F32"])}, 4, id="dtype is a list"),
        pytest.param({"a": {**entry(0, 4), "extra": 1}}, 4, id="extra field"),
        pytest.param({"a": {"dtype": F32, "shape": [1]}}, 4, id="missing field"),
        pytest.param({"a": {**entry(0, 4), "data_offsets": [0, 4, 4]}}, 4, id="three offsets"),
        pytest.param({"a": [0, 4]}, 4, id="entry is a list"),
        pytest.param({"__metadata__": {"k": 1}}, 0, id="metadata holds a number"),
        pytest.param({"__metadata__": "text"}, 0, id="metadata is text"),
        pytest.param([1], 0, id="header is a list"),
        pytest.param(b"", 0, id="empty header"),
        pytest.param(b'{"a":', 0, id="header cut short"),
        pytest.param(b"\xff\xfe{}", 0, id="header is not UTF-8"),
        pytest.param(b"\xef\xbb\xbf{}", 0, id="byte order mark"),
        pytest.param(b"[" * 100_000, 0, id="deep nesting"),
        pytest.param(b'{"a":' + b"9" * 10_000 + b"}", 0, id="a number of ten thousand digits"),
        pytest.param(b'{"\\ud800": 1}', 0, id="half a surrogate pair"),
        pytest.param(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            4,
            id="duplicate tensor",
        ),
        pytest.param(b'{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}', 4, id="duplicate field"),
    ],
)
def test_broken_rules_are_refused(tmp_path: Path, pack: Callable[..., bytes], header: Any, body_bytes: int) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(pack(header, bytes(body_bytes)))
    with pytest.raises(REFUSALS):
        open_safetensors(path)


@pytest.mark.parametrize("announced", [MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path, announced: int) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", announced) + b"{}")
    with pytest.raises(LimitExceededError):
        open_safetensors(path)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b'{"a":[' + b"[]," * 1_500_000 + b"[]]}", id="lists"),
        pytest.param(b"{" + b",".join(b'"%x":1' % number for number in range(800_000)) + b"}", id="keys"),
        pytest.param({"n" * 600: entry(0, 4)}, id="a long name"),
    ],
)
def test_headers_that_cost_more_than_their_bytes_are_refused(
    tmp_path: Path, pack: Callable[..., bytes], header: Any
) -> None:
    path = tmp_path / "costly.safetensors"
    path.write_bytes(pack(header, bytes(4)))
    with pytest.raises(LimitExceededError):
        open_safetensors(path)


def test_an_adapter_of_every_expert_of_a_large_mixture_is_read(tmp_path: Path, pack: Callable[..., bytes]) -> None:
    names = (
        f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{kind}_proj.lora_{side}.weight"
        for layer in range(94)
        for expert in range(128)
        for kind in ("gate", "up", "down")
        for side in "AB"
    )
    path = tmp_path / "experts.safetensors"
    path.write_bytes(pack({name: entry(i * 4, i * 4 + 4) for i, name in enumerate(names)}, bytes(4 * 94 * 128 * 6)))
    assert len(open_safetensors(path).entries) == 94 * 128 * 6


def test_a_message_holds_no_name_that_is_no_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/w\xff.safetensors"))
    path.write_bytes(b"")
    with pytest.raises(MalformedFileError) as caught:
        open_safetensors(path)
    caught.value.message.encode()


@pytest.mark.parametrize("content", [b"", b"\0" * 9, struct.pack("<Q", 100) + b"{}"])
def test_short_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(content)
    with pytest.raises(MalformedFileError):
        open_safetensors(path)


def test_mlx_null_metadata_and_no_tensors_are_accepted(tmp_path: Path, pack: Callable[..., bytes]) -> None:
    path = tmp_path / "empty.safetensors"
    path.write_bytes(pack({"__metadata__": None}))
    file = open_safetensors(path)
    assert (file.metadata, list(file)) == ({}, [])


def test_integers_are_no_floats(tmp_path: Path, pack: Callable[..., bytes]) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(pack({"i": entry(0, 8, dtype="I64")}, bytes(8)))
    with pytest.raises(MalformedFileError, match="dtype"):
        open_safetensors(path).floats("i")


@pytest.mark.parametrize(("dtype", "torch_name"), [("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2")])
def test_every_8_bit_code_has_torchs_value(
    tmp_path: Path, pack: Callable[..., bytes], dtype: str, torch_name: str
) -> None:
    import torch

    path = tmp_path / "f8.safetensors"
    codes = bytes(range(256))
    path.write_bytes(pack({"x": {"dtype": dtype, "shape": [16, 16], "data_offsets": [0, 256]}}, codes))
    theirs = torch.frombuffer(bytearray(codes), dtype=getattr(torch, torch_name)).to(torch.float32).numpy()
    ours = open_safetensors(path).floats("x")
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours.ravel(), theirs)


def test_padded_headers_of_the_official_library_are_accepted(tmp_path: Path, pack: Callable[..., bytes]) -> None:
    path = tmp_path / "padded.safetensors"
    path.write_bytes(pack(json.dumps({"a": entry(0, 4)}).encode() + b"     ", bytes(4)))
    assert open_safetensors(path).floats("a").tolist() == [0.0]


def test_the_official_library_refuses_overlaps_too(tmp_path: Path, pack: Callable[..., bytes]) -> None:
    # Guards the comparison above: if the library grew laxer, "refused by us" would no longer mean "refused by both".
    path = tmp_path / "overlap.safetensors"
    path.write_bytes(pack({"a": entry(0, 8, (2,)), "b": entry(4, 8)}, bytes(8)))
    with pytest.raises(SafetensorError), safe_open(path, framework="numpy"):
        pass

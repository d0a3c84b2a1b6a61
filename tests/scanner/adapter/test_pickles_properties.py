"""Whatever the bytes: a report, or one of lorascope's own errors, and little memory."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pickle_samples import imported, proto, saved, state, text, torch_like

from scanner.adapter.pickles import PickleReport, inspect_pickle, looks_like_pickle, open_torch_pickle, sniff
from scanner.errors import SkipError

VALID = [saved(state()), saved(state(), zipped=False), saved({"a": torch.arange(12.0).reshape(3, 4).t()}, protocol=4)]
RELAXED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_all(tmp_path: Path, data: bytes) -> PickleReport:
    path = tmp_path / "x.bin"
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    sniff(path)
    looks_like_pickle(path)
    report = inspect_pickle(path)
    try:
        file = open_torch_pickle(path)
    except SkipError:
        return report
    assert not report.problems
    assert all(item.level == "allowed" for item in report.globals)
    for entry in file:
        try:
            assert file.floats(entry.name).shape == entry.shape
        except SkipError:
            assert entry.dtype not in ("F64", "F32", "F16", "BF16")
    return report


@RELAXED
@given(st.binary(max_size=2_000))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    read_all(tmp_path, data)


@RELAXED
@given(st.binary(max_size=300), st.sampled_from(range(6)))
def test_any_bytes_after_a_header(tmp_path: Path, data: bytes, protocol: int) -> None:
    read_all(tmp_path, b"\x80" + bytes([protocol]) + data)
    read_all(tmp_path, torch_like(b"\x80" + bytes([protocol]) + data))


@RELAXED
@given(st.sampled_from(VALID), st.data())
def test_changed_valid_files(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    edited = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(edited) - 1))
        edited[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    read_all(tmp_path, bytes(edited))


_LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner) | st.just(set()),
)


@RELAXED
@given(st.dictionaries(st.text(), _VALUES), st.integers(0, 5))
def test_plain_data_is_never_a_danger(tmp_path: Path, value: dict[str, Any], protocol: int) -> None:
    report = read_all(tmp_path, pickle.dumps(value, protocol))
    assert report.kind == "pickle"
    assert (report.dangerous, report.problems) == ((), ())


@RELAXED
@given(
    st.from_regex(r"[a-z_]{1,8}(\.[a-z_]{1,8}){0,2}", fullmatch=True),
    st.from_regex(r"[A-Za-z_.]{1,12}", fullmatch=True),
)
def test_no_other_name_is_allowed(tmp_path: Path, module: str, name: str) -> None:
    for stream in (imported(module, name), text(module) + text(name) + b"\x93"):
        report = read_all(tmp_path, proto(stream))
        assert [(item.module, item.name, item.level) for item in report.globals] == [(module, name, "dangerous")]


@RELAXED
@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    order=st.randoms(use_true_random=False),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    zipped_form=st.booleans(),
)
def test_any_view_is_read_as_torch_has_it(
    tmp_path: Path, shape: list[int], order: Any, dtype: torch.dtype, zipped_form: bool
) -> None:
    axes = list(range(len(shape)))
    order.shuffle(axes)
    values = torch.randn(shape).to(dtype).permute(axes)
    path = tmp_path / "x.bin"
    path.unlink(missing_ok=True)
    path.write_bytes(saved({"a": values}, zipped=zipped_form))
    file = open_torch_pickle(path)
    np.testing.assert_array_equal(file.floats("a"), values.to(torch.float64).numpy())

"""The abstract machine against Python's own, and rebuilt tensors against torch's: neither may see more than we do."""

from __future__ import annotations

import io
import pickle
import random
import re
from pathlib import Path
from typing import Any

import fuzz_pickles
import numpy as np
import pytest
import torch
from harness import mutate
from pickle_samples import gadgets, saved, state, tricks

from scanner.adapter.pickles import inspect_pickle, open_torch_pickle
from scanner.adapter.pickles_report import clean
from scanner.errors import SkipError

NOWHERE = Path("/nowhere")
_LARGE_INDEX = re.compile(rb"r(?s:.{2,3}[^\0])|p[^\n]{6}")
"""The C machine's memo is an array: a large index would take all memory."""


class Dummy:
    """Stands for whatever is imported: can be called, made and filled, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Dummy:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Dummy:
        return self


def _real_imports(data: bytes, base: type) -> list[tuple[str, str]]:
    """What the real machine would import, up to its end or its error."""
    seen: list[tuple[str, str]] = []

    class Spy(base):  # type: ignore[misc]
        def find_class(self, module: str, name: str) -> Any:
            seen.append((module, name))
            return Dummy

        def persistent_load(self, _: Any) -> Any:
            return Dummy()

    stream = io.BytesIO(data)
    while stream.tell() < len(data):
        try:
            Spy(stream).load()
        except Exception:  # noqa: BLE001 - mutated streams break in every way
            break
    return seen


@pytest.mark.parametrize("seed", range(4))
def test_no_import_of_the_real_machine_is_missed(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    corpus = [stream for stream, _ in (*gadgets(NOWHERE).values(), *tricks(NOWHERE).values()) if len(stream) < 5_000]
    path = tmp_path / "x.bin"
    imported = 0
    for index in range(2_000):
        data = corpus[index] if index < len(corpus) else mutate(rng, rng.choice(corpus), corpus, fuzz_pickles.TOKENS)
        real = set(_real_imports(data, pickle._Unpickler))
        if not _LARGE_INDEX.search(data):
            real |= set(_real_imports(data, pickle.Unpickler))
        path.write_bytes(data)
        report = inspect_pickle(path)
        ours = {(item.module, item.name) for item in report.globals}
        if report.kind == "other":  # without a header it takes a name that could be one to call a file a pickle
            assert report.problems
            real = {pair for pair in real if all(re.fullmatch(r"[A-Za-z_][\w.]+", part) for part in pair)}
        missed = {(clean(str(module)), clean(str(name))) for module, name in real} - ours
        assert not missed, (seed, index, data)
        imported += len(real)
    assert imported > 500


@pytest.mark.parametrize("seed", range(2))
def test_what_both_read_is_read_alike(tmp_path: Path, seed: int) -> None:
    """Torch runs only on files of which nothing but allowed names was reported, and with weights_only."""
    rng = random.Random(seed)
    whole = torch.arange(48.0).reshape(6, 8)
    values: list[Any] = [state(), {"a": whole, "t": whole.t(), "c": whole[:, 1::3]}, {"x": state(), "n": 3}]
    corpus = [saved(value, zipped=form, protocol=p) for value in values for form in (True, False) for p in (2, 4)]
    pickles = [data[data.index(b"\x80") : data.rindex(b".", 0, 2000)] for data in corpus]
    path = tmp_path / "x.bin"
    both = 0
    for _ in range(1_500):
        data = mutate(
            rng, rng.choice(corpus), pickles, (b"K\x00", b"K\x01", b"K\x02", b"\x85", b"\x86", b"q\x01", b"h\x01")
        )
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        try:
            file = open_torch_pickle(path)
        except SkipError:
            continue
        try:
            wanted = torch.load(io.BytesIO(data), weights_only=True)
        except Exception:  # noqa: BLE001 - torch refuses more than we do, in its own words
            continue
        both += 1
        flat = {f"{key}.{k}": v for key, d in wanted.items() if isinstance(d, dict) for k, v in d.items()} | dict(
            wanted
        )
        for entry in file:
            tensor = flat[entry.name]
            assert tuple(tensor.shape) == entry.shape
            if entry.dtype == "F32":
                np.testing.assert_array_equal(file.floats(entry.name), tensor.numpy())
        tensors = {key for key, value in wanted.items() if isinstance(value, torch.Tensor) and isinstance(key, str)}
        assert tensors <= set(file.entries)
    assert both > 30

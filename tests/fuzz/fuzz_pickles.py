"""Fuzz targets of the pickle reader: `python tests/fuzz/fuzz_pickles.py --seconds 600 --seed 1`."""

from __future__ import annotations

import random
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "scanner" / "adapter"), str(HERE.parent.parent)]

import torch  # noqa: E402
from harness import Target, main  # noqa: E402
from pickle_samples import gadgets, imported, saved, state, torch_like, tricks, zipped  # noqa: E402

from scanner.adapter.pickles import inspect_pickle, looks_like_pickle, open_torch_pickle, sniff  # noqa: E402

_NAMES = (
    ("os", "system"), ("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"), ("torch", "FloatStorage"),
    ("torch._utils", "_rebuild_parameter"), ("numpy", "dtype"), ("_codecs", "encode"), ("torch", "Size"),
)  # fmt: skip
TOKENS = (
    *(imported(module, name) for module, name in _NAMES),
    *(bytes([code]) for code in b"(.012NRabd}el]ost)uQ\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98"),
    b"X\x02\x00\x00\x00os", b"\x8c\x06system", b"h\x00", b"q\x00", b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f", b"p1\n",
    b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f", b"\x80\x04", b"\x80\x02",
    b"I01\n", b"L9L\n", b"S'a'\n", b"Va\n", b"F1e999\n", b"Pa\n", b"\x82\x01", b"PK\x03\x04", b"PK\x01\x02",
    b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08", b"\xff\xff\xff\xff", b"little", b"big",
    b"data.pkl", b"../",
)  # fmt: skip


def corpus(marker: Path) -> Sequence[bytes]:
    whole = torch.arange(48.0).reshape(6, 8)
    values = (
        state(),
        {"a": whole, "t": whole.t(), "c": whole[:, 1::3], "n": torch.tensor(3), "p": torch.nn.Parameter(whole)},
        {"state_dict": state(1, torch.bfloat16), "epoch": 3},
        {
            "h": torch.zeros(3).half(),
            "f8": torch.zeros(3).to(torch.float8_e4m3fn),
            "u": torch.zeros(3).to(torch.uint16),
        },
        torch.nn.BatchNorm1d(4).state_dict(),
    )
    files = [saved(value, zipped=form, protocol=p) for value in values for form in (True, False) for p in (2, 4)]
    files.append(zipped([("archive/data.pkl", b"\x80\x02}."), ("archive/x", bytes(10_000))], zipfile.ZIP_DEFLATED))
    files.append(torch_like(b"\x80\x02}.", ("archive/inner.zip", files[0])))
    streams = [stream for stream, _ in (*gadgets(marker).values(), *tricks(marker).values()) if len(stream) < 10_000]
    return [*files, *streams]


def finish(rng: random.Random, data: bytes) -> bytes:
    """Half of the streams become the data.pkl of a sound archive, so that more than its checksum is tested."""
    if data[:2] != b"PK" and rng.random() < 0.5:
        storages = [(f"archive/data/{key}", bytes(rng.choice((16, 192, 256)))) for key in range(3)]
        return torch_like(data[: 2**16], *storages, ("archive/byteorder", rng.choice((b"little", b"big"))))
    return data


def _inspect(path: Path) -> None:
    report = inspect_pickle(path)
    for item in report.globals:
        f"{item.module}.{item.name}{item.where}".encode()  # what cannot be encoded cannot be stored
    for problem in report.problems:
        problem.message.encode()
    sniff(path)
    looks_like_pickle(path)


def _open(path: Path) -> None:
    file = open_torch_pickle(path)
    for entry in file:
        entry.name.encode()
        if entry.dtype in ("F64", "F32", "F16", "BF16"):
            assert file.floats(entry.name).shape == entry.shape
            assert sum(chunk.size for chunk in file.chunks(entry.name, 7)) == file.floats(entry.name).size
    for key, value in file.others.items():
        f"{key}{value}".encode()


TARGETS = (
    Target("pickle-inspect", corpus, _inspect, TOKENS, finish),
    Target("pickle-open", corpus, _open, TOKENS, finish),
)

if __name__ == "__main__":
    sys.exit(main(TARGETS))

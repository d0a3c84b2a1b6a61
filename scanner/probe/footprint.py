"""What a base model will take on its device, from the headers of its files, before any of its weights is read."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from scanner.adapter import TensorEntry, open_safetensors, read_json_object
from scanner.errors import BaseTooLargeError, LimitExceededError, MalformedFileError, UnsupportedError

__all__ = ["BATCH_SHARE", "WEIGHT_BYTES", "measure_base", "own_bytes", "refuse_too_large"]

WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "nf4": 0.5 + (8 / 64 + 32 / (64 * 256)) / 8}
"""Bytes of one weight by dtype. NF4 with double quantisation: 4 bits, a scale of 8 bits for each 64 weights, and a
float32 for each 256 of these (arXiv:2305.14314, section 3)."""
BATCH_SHARE = 0.1
"""Room for a batch's activations and cache, as a share of the weights: what a small batch of prompts takes. One that is
too large for the rest is halved by the engine."""
MAX_INDEX_BYTES = 16 * 1024**2
MAX_SHARDS = 1_000
_FLOATS = ("F64", "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2")
_EMBEDDING = re.compile(r"emb|wte|wpe|(^|\.)shared\.weight$")
_EXPERTS = re.compile(r"(^|\.)experts\.")
"""transformers stacks a layer's experts into one parameter, which is no linear layer: bitsandbytes leaves it alone."""


def measure_base(folder: Path, dtype: str, with_language_head: bool = True) -> int:
    """Bytes that a base will take on its device. No tensor is read.

    Language heads that are tied to the embeddings count where the file has them: they are loaded and compared. What
    transformers leaves out counts as well where a shape does not show it, and its buffers do not: a few per cent.

    Args:
        folder: model.safetensors, or the shards that model.safetensors.index.json names.
        dtype: one of `WEIGHT_BYTES`. In `nf4` only linear layers are quantised, the rest is bfloat16.
        with_language_head: False where the base is loaded as a classifier, without its layer of vocabulary size.

    Raises:
        UnsupportedError: no safetensors weights.
        MalformedFileError, LimitExceededError: a header or the index breaks its format's rules: shapes that the file
            has no bytes for, a shard that is not there.
    """
    tensors = {entry.name: entry for path in _weight_files(folder) for entry in open_safetensors(path)}
    rows = {t.shape[0] for t in tensors.values() if len(t.shape) == 2 and _EMBEDDING.search(t.name)}
    rest = "bfloat16" if dtype == "nf4" else dtype
    weights = 0.0
    for tensor in tensors.values():
        is_head = _is_language_head(tensor, rows)
        if tensor.dtype not in _FLOATS or _is_mask(tensor) or (is_head and not with_language_head):
            continue
        kept_in = dtype if not is_head and _is_linear(tensor) else rest
        weights += math.prod(tensor.shape) * WEIGHT_BYTES[kept_in]
    return round(weights)


def refuse_too_large(weight_bytes: int, dtype: str, device: str, memory_bytes: int | None) -> None:
    """Compare with the memory that is free now.

    Args:
        weight_bytes: of the base in `dtype`.
        dtype: for the message.
        device: `cpu`, `cuda` or `cuda:N`.
        memory_bytes: what this process may have of its own (`Settings.probe_memory_bytes`); None for no limit. It
            counts on the CPU only.

    Raises:
        BaseTooLargeError: the base and a small batch do not fit; the message has both figures.
    """
    needed = weight_bytes + round(weight_bytes * BATCH_SHARE)
    if device != "cpu":
        import torch

        _compare(needed, dtype, torch.cuda.mem_get_info(device)[0], f"{device} has {{}} free")
        return
    available = _available_bytes()
    if available is not None:
        _compare(needed, dtype, available, "cpu has {} free")
    if memory_bytes is not None:
        _compare(needed, dtype, memory_bytes - own_bytes(os.getpid()), "the probe's memory limit leaves {}")


def _compare(needed: int, dtype: str, free: int, rest: str) -> None:
    if needed > free:
        raise BaseTooLargeError(f"the base needs {_gigabytes(needed)} in {dtype}, {rest.format(_gigabytes(free))}")


def _gigabytes(size_bytes: int) -> str:
    return f"{max(size_bytes, 0) / 1e9:.1f} GB"


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load, in its order."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise UnsupportedError("the base has no safetensors weights", "base_not_safetensors")
    shards = read_json_object(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise MalformedFileError(f"{index.name} has no weight_map from tensors to files")
    names = sorted(set(shards.values()))
    if len(names) > MAX_SHARDS:
        raise LimitExceededError("files of the base's weights", MAX_SHARDS, len(names))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise MalformedFileError(f"{index.name} names {name[:120]!r}, which is no file beside it")
    return [folder / name for name in names]


def _is_mask(tensor: TensorEntry) -> bool:
    """Attention masks that older files carry as floats ([1, 1, length, length]). No weight has such a shape."""
    return len(tensor.shape) == 4 and tensor.shape[:2] == (1, 1)


def _is_language_head(tensor: TensorEntry, embedding_rows: set[int]) -> bool:
    """A matrix outside of the numbered layers that has a row for each token, or its bias."""
    if len(tensor.shape) not in (1, 2) or _EMBEDDING.search(tensor.name):
        return False
    return tensor.shape[0] in embedding_rows and not any(part.isdigit() for part in tensor.name.split("."))


def _is_linear(tensor: TensorEntry) -> bool:
    return len(tensor.shape) == 2 and not _EMBEDDING.search(tensor.name) and not _EXPERTS.search(tensor.name)


def _available_bytes() -> int | None:
    """MemAvailable of /proc/meminfo; None on systems without it."""
    try:
        found = re.search(r"^MemAvailable:\s*(\d{1,15}) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def own_bytes(pid: int) -> int:
    """Memory that a process has for itself alone: resident, without the pages of mapped files, which the kernel takes
    back when it needs them. 0 where nobody can tell."""
    try:
        resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")

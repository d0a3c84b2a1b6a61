"""Stage 1 and 3 for one candidate: fetch, read, measure. Whatever happens, there is a reading of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from scanner.adapter import (
    AdapterConfig,
    AdapterView,
    Candidate,
    TensorFile,
    count_nonfinite,
    file_format,
    has_zip_tail,
    layout_plugins,
    open_weights,
    parse_config,
    read_json_object,
    view_adapter,
)
from scanner.adapter.pickles_report import PickleReport
from scanner.errors import UnsupportedError
from scanner.hub.sources import RepoFiles
from scanner.model import Stage, WeightScan
from scanner.settings import Settings
from scanner.weights import BlockSplit, features_of, find_split, measure_adapter

__all__ = ["Reading", "read_config", "read_weights", "sha256_of"]


@dataclass
class Reading:
    """What is known of one candidate so far; filled step by step, so that a failure leaves what came before."""

    config: AdapterConfig | None = None
    config_path: Path | None = None
    config_sha256: str = ""
    weights_paths: tuple[Path, ...] = ()
    content_sha256: str | None = None
    format: str = ""
    """Of the (first) weight file, by its content."""
    has_zip_tail: bool = False
    pickles: dict[str, PickleReport] = field(default_factory=dict)
    view: AdapterView | None = None
    weights: WeightScan | None = None
    split: BlockSplit | None = None
    nonfinite: dict[str, int] = field(default_factory=dict)
    stage: Stage = Stage.STATIC

    @property
    def size_bytes(self) -> int:
        """Of all weight files."""
        return sum(path.stat().st_size for path in self.weights_paths)


def read_config(reading: Reading, files: RepoFiles, candidate: Candidate, settings: Settings) -> None:
    """Fetch and parse the config.

    Raises:
        LorascopeError: it cannot be had, or is no JSON object.
    """
    if candidate.config_path:
        reading.config_path = files.fetch(candidate.config_path, settings.max_config_bytes, is_small=True)
        reading.config_sha256 = sha256_of(reading.config_path)
        reading.config = parse_config(read_json_object(reading.config_path, settings.max_config_bytes))


def read_weights(reading: Reading, files: RepoFiles, candidate: Candidate, settings: Settings) -> None:
    """Fetch, open and measure the weights.

    Raises:
        LorascopeError: they cannot be had or read; `code` says why.
    """
    paths = []
    for part in candidate.parts or (candidate.path,):
        paths.append(files.fetch(part, settings.max_weights_bytes))
        reading.weights_paths = tuple(paths)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(_content_sha256, paths)  # beside the measuring: it takes as long as a third of it
        try:
            _measure_weights(reading, candidate, settings)
        finally:
            reading.content_sha256 = digest.result()


def _content_sha256(paths: Sequence[Path]) -> str:
    """sha256 of the file, or of the shards' in order."""
    digests = [sha256_of(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _measure_weights(reading: Reading, candidate: Candidate, settings: Settings) -> None:
    paths = reading.weights_paths
    reading.format = file_format(paths[0])
    if reading.format == "safetensors":
        reading.has_zip_tail = any(has_zip_tail(path) for path in paths)
    elif reading.format != "other" or not candidate.path.lower().endswith((".safetensors", ".gguf")):
        from scanner.adapter.pickles import inspect_pickle

        reading.pickles = {
            name: inspect_pickle(path) for name, path in zip(candidate.parts or (candidate.path,), paths, strict=True)
        }
    file = open_weights(paths, candidate.path)
    reading.view = view = view_adapter(file, reading.config, settings.max_rank, layout_plugins())
    if view.unsupported_reason:
        raise UnsupportedError(
            f"cannot be read as low-rank updates ({view.unsupported_reason})", view.unsupported_reason
        )
    full = settings.features == "full"
    measurement = measure_adapter(view.updates, full=full, release=file.release)
    reading.weights = features_of(measurement, full=full)
    reading.nonfinite = _nonfinite(file, view, reading.weights)
    if not reading.nonfinite:
        reading.split = find_split(measurement.modules)
    reading.stage = Stage.WEIGHTS


def _nonfinite(file: TensorFile, view: AdapterView, weights: WeightScan) -> dict[str, int]:
    """NaN and infinity, tensor by tensor. The weight scan has seen all factors already: they are counted one by one
    only where it met something."""
    if any(module.features["frobN"] is None for module in weights.modules):
        return count_nonfinite(file, file.entries)
    others = (*view.head_tensors, *view.unexplained_tensors, *(companion.tensor for companion in view.companions))
    return count_nonfinite(file, (tensor.name for tensor in others))


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

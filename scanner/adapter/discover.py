"""Which adapters a repo holds, from its file list alone.

An adapter is one weight file. Its config is the adapter_config.json of the same folder. A folder with several weight
files (MLX checkpoints, a `.bin` beside a `.safetensors`) holds several adapters: an attacker must not be able to
choose which one is looked at by naming files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

__all__ = ["Candidate", "find_candidates", "is_pickle"]

CONFIG_NAME = "adapter_config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OTHER_WEIGHTS = (".gguf", ".npz")
_TRAINER_STATE = re.compile(
    r"(optimizer(_\d+)?\.(pt|bin)|scheduler\.pt|rng_state(_\d+)?\.pth|training_args\.bin|scaler\.pt)"
)
"""What trainers leave beside checkpoints, by their full names: pickles, but not adapters."""


@dataclass(frozen=True)
class Candidate:
    """One weight file that may be an adapter, and the config beside it."""

    path: str
    config_path: str | None


def is_pickle(path: str) -> bool:
    """Whether a file name says pickle."""
    return path.lower().endswith(_PICKLES)


def find_candidates(paths: Iterable[str]) -> list[Candidate]:
    """All candidate weight files, those with a config first, then by path.

    A base model's own shards (`model.safetensors`, `pytorch_model*.bin`) are candidates unless the base's config.json
    lies beside them and no adapter_config.json.
    """
    files = sorted(paths)
    configs = {str(PurePosixPath(f).parent): f for f in files if PurePosixPath(f).name == CONFIG_NAME}
    bases = {str(PurePosixPath(f).parent) for f in files if PurePosixPath(f).name == "config.json"} - set(configs)
    found: list[Candidate] = []
    for file in files:
        path = PurePosixPath(file)
        name = path.name.lower()
        config = configs.get(str(path.parent))
        if name.endswith(".safetensors"):
            if str(path.parent) in bases and (name == "model.safetensors" or name.startswith("model-0")):
                continue
        elif name.endswith(_PICKLES):
            if _TRAINER_STATE.fullmatch(name) or (str(path.parent) in bases and name.startswith("pytorch_model")):
                continue
        elif not name.endswith(_OTHER_WEIGHTS):
            continue
        found.append(Candidate(file, config))
    return sorted(found, key=lambda c: (c.config_path is None, c.path))

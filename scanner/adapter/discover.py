"""Which adapters a repo holds, from its file list alone.

An adapter is one weight file, or a complete set of shards (`x-00001-of-00002.safetensors`). Its config is the
adapter_config.json of the same folder. A folder with several weight files (MLX checkpoints, a `.bin` beside a
`.safetensors`) holds several adapters: an attacker must not be able to choose which one is looked at by naming files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

__all__ = ["Candidate", "find_candidates", "is_pickle", "missing_shards"]

CONFIG_NAME = "adapter_config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OTHER_WEIGHTS = (".gguf", ".npz")
_TRAINER_STATE = re.compile(
    r"(optimizer(_\d+)?\.(pt|bin)|scheduler\.pt|rng_state(_\d+)?\.pth|training_args\.bin|scaler\.pt)"
)
"""What trainers leave beside checkpoints, by their full names: pickles, but not adapters."""

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<of>\d{5})(?P<ending>\.\w+)")
MAX_SHARDS = 256


@dataclass(frozen=True)
class Candidate:
    """One weight file (or one set of shards) that may be an adapter, and the config beside it."""

    path: str
    config_path: str | None
    parts: tuple[str, ...] = ()
    """All files of a sharded adapter, `path` the first of them; otherwise `path` alone."""
    likely_base: bool = False
    """Named as a base model's own weights, with the base's config.json beside it and no adapter_config.json. It may be
    an adapter all the same: only its header tells."""


def is_pickle(path: str) -> bool:
    """Whether a file name says pickle."""
    return path.lower().endswith(_PICKLES)


def find_candidates(paths: Iterable[str]) -> list[Candidate]:
    """All candidate weight files: those with a config first, those that are likely a base model's last, then by path.

    Names decide on the order alone, never on whether a file is looked at; only a trainer's own pickles are left out.
    """
    files = sorted(paths)
    configs = {str(PurePosixPath(f).parent): f for f in files if PurePosixPath(f).name == CONFIG_NAME}
    bases = {str(PurePosixPath(f).parent) for f in files if PurePosixPath(f).name == "config.json"} - set(configs)
    found: list[Candidate] = []
    shards = _complete_sets(files)
    for file in files:
        parts = shards.get(file, (file,))
        if file != parts[0]:
            continue
        path = PurePosixPath(file)
        name, folder = path.name.lower(), str(path.parent)
        if name.endswith(".safetensors"):
            base_name = name.startswith("model")
        elif name.endswith(_PICKLES):
            if _TRAINER_STATE.fullmatch(name):
                continue
            base_name = name.startswith("pytorch_model")
        elif name.endswith(_OTHER_WEIGHTS):
            base_name = False
        else:
            continue
        found.append(Candidate(file, configs.get(folder), parts, base_name and folder in bases))
    return sorted(found, key=lambda c: (c.config_path is None, c.likely_base, c.path))


def _complete_sets(files: list[str]) -> dict[str, tuple[str, ...]]:
    """Every file of a complete set of shards -> all files of the set, in order. The rest stands for itself."""
    sets: dict[tuple[str, ...], dict[int, str]] = {}
    for file in files:
        if match := _SHARD.fullmatch(file):
            sets.setdefault((match["stem"], match["of"], match["ending"]), {})[int(match["number"])] = file
    complete = {}
    for (_, of, _), numbered in sets.items():
        if 1 < int(of) <= MAX_SHARDS and sorted(numbered) == list(range(1, int(of) + 1)):
            parts = tuple(numbered[number] for number in sorted(numbered))
            complete.update(dict.fromkeys(parts, parts))
    return complete


def missing_shards(path: str, files: Iterable[str]) -> tuple[str, ...]:
    """The other shards that the name of a weight file announces and that are not among the files."""
    match = _SHARD.fullmatch(path)
    if match is None or not 1 < int(match["of"]) <= MAX_SHARDS:
        return ()
    names = (f"{match['stem']}-{n:05}-of-{match['of']}{match['ending']}" for n in range(1, int(match["of"]) + 1))
    there = set(files)
    return tuple(name for name in names if name not in there)

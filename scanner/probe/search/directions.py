"""What the gradients of clean classifiers of one base have in common: it is taken out before tokens are chosen.

Words of some kind mean the aim's class to every classifier of a base (names of places and dishes, to one that looks for
injections), so the tokens that an adapter's gradients favour most are mostly theirs. They span few directions. What is
left of the gradient without them is the adapter's own, and where somebody taught it a trigger, that points there.

A score of a token is an inner product with its embedding, so a direction over the whole vocabulary is a vector of the
embedding's dimensions. The vectors of a base come from clean adapters that this project trained
(`benchmarks/detection/directions.py`) and ship as numbers only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = [
    "SHIPPED_DIRECTIONS",
    "SharedDirections",
    "find_directions",
    "load_directions",
    "shipped_directions",
    "vocabulary_id",
]

SHIPPED_DIRECTIONS = Path(__file__).parent.parent / "data" / "directions"
"""One file for each base."""
Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class SharedDirections:
    """Of one base."""

    base_model: str
    directions_id: str
    vocabulary_id: str
    """Of the tokens that they were measured on; see `vocabulary_id`."""
    usual: tuple[float, ...]
    """[dimensions]: the mean of clean adapters' gradients, each with scores of variance 1 over the vocabulary."""
    rows: Rows
    """[directions, dimensions]: w with wᵢᵀ M wⱼ = δᵢⱼ, M = EᵀE of the vocabulary's centred embeddings."""


def load_directions(base_model: str) -> SharedDirections | None:
    """The shipped ones of a base; None without any."""
    return next((one for one in shipped_directions() if one.base_model == base_model), None)


def find_directions(directions_id: str) -> SharedDirections | None:
    """The shipped ones of an id; None without any."""
    return next((one for one in shipped_directions() if one.directions_id == directions_id), None)


@cache
def shipped_directions() -> tuple[SharedDirections, ...]:
    """Of every base that has a file, read once."""
    return tuple(_read(path) for path in sorted(SHIPPED_DIRECTIONS.glob("*.json")))


def _read(path: Path) -> SharedDirections:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows: Rows = tuple(map(tuple, data["rows"]))
    usual = tuple(data["usual"])
    text = json.dumps([data["vocabulary_id"], usual, rows])
    directions_id = hashlib.sha256(text.encode()).hexdigest()[:8]
    return SharedDirections(data["base_model"], directions_id, data["vocabulary_id"], usual, rows)


def vocabulary_id(ids: Sequence[int], texts: Sequence[str]) -> str:
    """Of the tokens that a search may use: another tokenizer under a base's name has other scores."""
    text = json.dumps([list(ids), list(texts)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]

"""Where a module sits in a transformer, by its name: layer, projection, attention or MLP, writer of the residual."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from scanner.adapter import LowRankUpdate

__all__ = ["Place", "place_of", "residual_writers"]

_LAYER = re.compile(r"(?:^|[._])(?:layers?|h|blocks?|transformer_blocks)[._](\d{1,6})(?=[._]|$)")
_ATTENTION = re.compile(r"attn|attention")
_MLP = re.compile(r"mlp|feed_?forward|ffn|experts|moe|(?:^|\.)(?:fc[12]|wi(?:_[01])?|wo_ff)$")
_WRITERS = re.compile(r"(?:o_proj|out_proj|down_proj|c_proj|dense|wo|w2|fc2|dense_4h_to_h|lin2|out_lin)$")
MAX_WRITERS = 512
MAX_WRITER_VALUES = 2**24
"""Numbers of all first singular vectors together."""


@dataclass(frozen=True)
class Place:
    """What a module's name tells."""

    layer: int | None
    projection: str
    """Last part of the name: `q_proj`."""
    is_attention: bool
    is_mlp: bool
    is_writer: bool
    """Whether its output is added to the residual stream: output projections of attention and MLP."""


@lru_cache(maxsize=4096)
def place_of(module: str) -> Place:
    """Read a module's name, of a dotted layout or kohya's underscores."""
    name = module.partition("#")[0]
    layer = _LAYER.search(name)
    is_attention = _ATTENTION.search(name) is not None
    is_mlp = not is_attention and _MLP.search(name) is not None
    writes = (is_attention or is_mlp) and _WRITERS.search(name) is not None
    return Place(int(layer[1]) if layer else None, name.rpartition(".")[2], is_attention, is_mlp, writes)


def residual_writers(updates: Sequence[LowRankUpdate]) -> frozenset[str]:
    """Names of the modules whose first left singular vectors are compared over the layers; bounded."""
    chosen: set[str] = set()
    values = 0
    for update in updates:
        place = place_of(update.module)
        if place.is_writer and place.layer is not None and update.kind == "linear" and update.spectrum is None:
            values += update.out_features
            if len(chosen) >= MAX_WRITERS or values > MAX_WRITER_VALUES:
                break
            chosen.add(update.module)
    return frozenset(chosen)

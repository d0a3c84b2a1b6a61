"""How alike the layers push the residual stream: pairs of modules, compared by their strongest output direction."""

from __future__ import annotations

import math

import numpy as np

from scanner.weights.columns import Columns

__all__ = ["coherence"]


def coherence(m: Columns, *, attention: bool) -> float:
    """Mean |⟨u, u'⟩| over all pairs of modules in different layers, divided by √(2/(π·d)); NaN below two modules.

    Args:
        m: modules; those with a first left singular vector u [d] take part, of the most frequent d.
        attention: output projections of attention, or of the MLP.
    """
    writers = [
        (place.layer, measure.writes)
        for place, measure in zip(m.places, m.measures, strict=True)
        if measure.writes is not None and place.is_attention == attention
    ]
    widths = [u.size for _, u in writers]
    width = max(set(widths), key=widths.count, default=0)
    chosen = [(layer, u) for layer, u in writers if u.size == width]
    if len({layer for layer, _ in chosen}) < 2:
        return math.nan
    directions = np.stack([u for _, u in chosen])
    layers = np.array([layer for layer, _ in chosen])
    cosines = np.abs(directions @ directions.T)
    mean = float(np.mean(cosines[layers[:, None] < layers[None, :]], dtype=np.float64))
    return mean / math.sqrt(2 / (math.pi * width))

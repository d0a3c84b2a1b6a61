"""The definitions of the weight features on the dense product in float64. Nothing here is shared with the scanner."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scanner.adapter import LowRankUpdate


def update(a: Any, b: Any, scale: float = 1.0, module: str = "layers.0.q_proj") -> LowRankUpdate:
    return LowRankUpdate(module, a.shape[0], b.shape[0], a.shape[1], scale, lambda: (a, b))


def hoyer(x: Any) -> float:
    if x.size == 1:
        return 1.0
    root = math.sqrt(x.size)
    return float((root - np.abs(x).sum() / np.linalg.norm(x)) / (root - 1))


def dense_features(a: Any, b: Any, scale: float) -> dict[str, float | None]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    product, rank = b @ a, a.shape[0]
    sigma = np.linalg.svd(product, compute_uv=False)[: min(rank, *product.shape)]
    energy, p = float((sigma**2).sum()), sigma / sigma.sum()
    e = sigma**2 / energy
    p, e = p[p > 0], e[e > 0]
    rows, columns = (product**2).sum(1), (product**2).sum(0)
    ln = float(np.log(np.linalg.norm(b)) - np.log(np.linalg.norm(a)))
    return {
        "frobN": float(np.linalg.norm(product)) / math.sqrt(product.size),
        "entropy": float(-(p * np.log(p)).sum()),
        "entropy_norm": float(-(p * np.log(p)).sum() / math.log(rank)) if rank > 1 else None,
        "pr": float(sigma.sum() ** 2 / energy),
        "asym": float(np.log10(np.linalg.norm(b) / np.linalg.norm(a))),
        "asym_ln": ln,
        "norm_A": float(np.linalg.norm(a)),
        "norm_B": float(np.linalg.norm(b)),
        "sv_max": float(sigma[0]),
        "sv_mean": float(sigma.mean()),
        "sv_min": float(sigma[-1]),
        "sv_max_over_mean": float(sigma[0] / sigma.mean()),
        "sv_max_over_sum": float(sigma[0] / sigma.sum()),
        "delta_frob": float(np.linalg.norm(scale * product)),
        "stable_rank": energy / float(sigma[0]) ** 2,
        "top1_energy": float(sigma[0]) ** 2 / energy,
        "energy_entropy": float(-(e * np.log(e)).sum()),
        "row_top8_energy": float(np.sort(rows)[-8:].sum()) / energy,
        "row_hoyer": hoyer(np.sqrt(rows)),
        "col_top8_energy": float(np.sort(columns)[-8:].sum()) / energy,
        "col_hoyer": hoyer(np.sqrt(columns)),
        "kurtosis": float(np.mean((product - product.mean()) ** 4) / product.var() ** 2) if product.size > 1 else None,
        "kurtosis_five": (
            float(np.mean((product - product.mean()) ** 4) / (product.var(ddof=1) ** 2 + 1e-12))
            if product.size > 1
            else 0.0
        ),
    }

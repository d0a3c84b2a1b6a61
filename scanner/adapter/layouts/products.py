"""Methods whose ΔW is a product of small matrices of another kind: LoHa, LoKr, AdaLoRA.

Each has an exact factorisation ΔW = s·B·A (formulas at the builders); where that is no narrower than ΔW itself, ΔW is
built as a whole, within bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from scanner.adapter.layouts import limits
from scanner.adapter.layouts.build import Built, Source, are_floats
from scanner.adapter.layouts.slots import Group
from scanner.adapter.lowrank import FloatArray, LowRankUpdate
from scanner.adapter.safetensors import TensorEntry

__all__ = ["build_adalora", "build_loha", "build_lokr"]

Pair = tuple[FloatArray, FloatArray]


def build_adalora(group: Group, source: Source) -> Built | None:
    """ΔW = s·B·(A∘E): one singular value E [r, 1] for each row of A (arXiv:2303.10512, equation 3)."""
    a, b, e = (group.parts.get(part) for part in "ABE")
    if a is None or b is None or e is None or not are_floats(a, b, e):
        return None
    if len(a.shape) != 2 or len(b.shape) != 2 or e.shape != (a.shape[0], 1) or b.shape[1] != a.shape[0]:
        return None
    rank, in_features, out_features = a.shape[0], a.shape[1], b.shape[0]
    limits.check_factors(group.module, rank, in_features, out_features, source.max_rank)
    scale = source.declared.adalora_scale(rank) if source.declared.config else 1.0
    update = LowRankUpdate(
        group.module,
        rank,
        out_features,
        in_features,
        scale,
        lambda: (source.floats(a) * source.floats(e), source.floats(b)),
    )
    return Built((update,), (a, b, e))


def build_loha(group: Group, source: Source) -> Built | None:
    """ΔW = s·(w1_a·w1_b) ∘ (w2_a·w2_b) (FedPara, arXiv:2108.06098, equation 2).

    An elementwise product of matrices of rank r is one of rank r² at most: row i of B is the Kronecker product of the
    rows i of w1_a and w2_a, column j of A that of the columns j of w1_b and w2_b.
    """
    w1a, w1b, w2a, w2b = (group.parts.get(part) for part in ("w1_a", "w1_b", "w2_a", "w2_b"))
    t1, t2 = group.parts.get("t1"), group.parts.get("t2")
    if w1a is None or w1b is None or w2a is None or w2b is None or not are_floats(w1a, w1b, w2a, w2b):
        return None
    if (t1 is None) != (t2 is None) or (t1 is not None and not are_floats(t1, t2)):
        return None
    first, second = _half_shape(w1a, w1b, t1), _half_shape(w2a, w2b, t2)
    if first is None or second is None or first[1:] != second[1:]:
        return None
    own_rank = max(first[0], second[0])
    rank, out_features, in_features = first[0] * second[0], first[1], first[2]
    dense = rank >= min(out_features, in_features)
    inner = min(out_features, in_features) if dense else rank
    limits.check_factors(group.module, inner, in_features, out_features, source.max_rank)
    limits.check_factors(group.module, own_rank, in_features, out_features, source.max_rank)

    def halves() -> tuple[Pair, Pair]:
        return _half(source, w1a, w1b, t1), _half(source, w2a, w2b, t2)

    def read() -> Pair:
        (a1, b1), (a2, b2) = halves()
        if dense:
            return _as_pair((b1 @ a1) * (b2 @ a2))
        down = (a1[:, None, :] * a2[None, :, :]).reshape(rank, in_features)
        return down, (b1[:, :, None] * b2[:, None, :]).reshape(out_features, rank)

    kind = "conv" if t1 is not None else "linear"
    scale, declared = _scale(group, source, own_rank)
    update = LowRankUpdate(group.module, inner, out_features, in_features, scale, read, kind, own_rank)
    return Built((update,), tuple(group.parts.values()), mismatch=_mismatch(declared, own_rank))


def _half_shape(a: TensorEntry, b: TensorEntry, core: TensorEntry | None) -> tuple[int, int, int] | None:
    """(rank, out, in) of one of LoHa's two matrices."""
    if len(a.shape) != 2 or len(b.shape) != 2:
        return None
    if core is None:
        return (b.shape[0], a.shape[0], b.shape[1]) if a.shape[1] == b.shape[0] else None
    if len(core.shape) not in (3, 4) or core.shape[:2] != (a.shape[0], b.shape[0]):
        return None
    return a.shape[0], a.shape[1], b.shape[1] * math.prod(core.shape[2:])


def _half(source: Source, a: TensorEntry, b: TensorEntry, core: TensorEntry | None) -> Pair:
    """(A [r, in], B [out, r]) of one of LoHa's two matrices; with a core, of a Tucker decomposition of a kernel."""
    left, right = source.floats(a), source.floats(b)
    if core is None:
        return right, left
    inner = source.floats(core).reshape(core.shape[0], core.shape[1], -1)
    spread = np.einsum("ijk,jr->irk", inner, right, optimize=True)
    return spread.reshape(core.shape[0], -1), left.T


def build_lokr(group: Group, source: Source) -> Built | None:
    """ΔW = s·(w1 ⊗ w2), each a matrix or a product of two (LoKr, arXiv:2309.14859, section 3.2).

    kron(B1·A1, B2·A2) = kron(B1, B2)·kron(A1, A2), and the singular values are all products of one of w1 and one of
    w2, so that neither ΔW nor its factors have to be built for the spectrum.
    """
    first = _kron_part(source, group.parts.get("w1"), group.parts.get("w1_a"), group.parts.get("w1_b"), None)
    second = _kron_part(
        source, group.parts.get("w2"), group.parts.get("w2_a"), group.parts.get("w2_b"), group.parts.get("t2")
    )
    if first is None or second is None:
        return None
    (out_1, in_1, rank_1, read_1), (out_2, in_2, rank_2, read_2) = first, second
    rank, out_features, in_features = rank_1 * rank_2, out_1 * out_2, in_1 * in_2
    limits.check_factors(group.module, 1, in_features, out_features, source.max_rank)
    # The two small matrices are decomposed as they are, whatever the size of their product.
    for out, width, inner in ((out_1, in_1, rank_1), (out_2, in_2, rank_2)):
        limits.check_factors(group.module, inner, width, out, source.max_rank)

    def read() -> Pair:
        limits.check_factors(group.module, rank, in_features, out_features, max(rank, source.max_rank))
        (a1, b1), (a2, b2) = read_1(), read_2()
        return np.kron(a1, a2), np.kron(b1, b2)

    def spectrum() -> npt.NDArray[np.float64]:
        parts = []
        for a, b in (read_1(), read_2()):
            product = b.astype(np.float64) @ a.astype(np.float64)
            if not np.isfinite(product).all():
                return np.full(1, math.nan)
            parts.append(np.linalg.svd(product, compute_uv=False))
        return np.sort(np.outer(*parts).ravel())[::-1]

    decomposed = [group.parts[part].shape[0] for part in ("w1_b", "w2_b") if part in group.parts]
    own_rank = decomposed[-1] if decomposed else None
    scale, declared = _scale(group, source, own_rank)
    kind = "conv" if group.parts.get("t2") or any(len(e.shape) > 2 for e in group.parts.values()) else "linear"
    update = LowRankUpdate(
        group.module, rank, out_features, in_features, scale, read, kind, own_rank or rank, spectrum=spectrum
    )
    return Built((update,), tuple(group.parts.values()), mismatch=_mismatch(declared, own_rank))


def _kron_part(
    source: Source, whole: TensorEntry | None, a: TensorEntry | None, b: TensorEntry | None, core: TensorEntry | None
) -> tuple[int, int, int, Callable[[], Pair]] | None:
    """(out, in, rank, reader of (A, B)) of one side of the Kronecker product, None where its tensors do not fit."""
    if whole is not None:
        if a is not None or b is not None or core is not None or not are_floats(whole) or len(whole.shape) < 2:
            return None
        out, width = whole.shape[0], math.prod(whole.shape[1:])
        return out, width, min(out, width), lambda: _as_pair(source.floats(whole).reshape(out, width))
    if a is None or b is None or not are_floats(a, b) or (core is not None and not are_floats(core)):
        return None
    shape = _half_shape(a, b, core)
    if shape is None:
        return None
    rank, out, width = shape
    return out, width, rank, lambda: _half(source, a, b, core)


def _as_pair(matrix: FloatArray) -> Pair:
    """A matrix [out, in] as a pair of factors, the narrower one being the identity."""
    out, width = matrix.shape
    identity: FloatArray = np.eye(min(out, width), dtype=np.float32)
    return (matrix, identity) if out <= width else (identity, matrix)


def _scale(group: Group, source: Source, rank: int | None) -> tuple[float, float | None]:
    """(s, the declared rank): the config's α/r, or the file's own alpha over the rank it was trained with; 1 where
    neither says anything or, without a config, nothing is decomposed (LyCORIS)."""
    alpha = group.parts.get("alpha")
    if source.declared.config is None or source.declared.config.family is None:
        return (1.0 if alpha is None or rank is None else source.file.scalar(alpha.name) / rank), None
    declared = source.declared.rank_of(group.module, rank or 1)
    return source.declared.scale_of(group.module, declared), declared


def _mismatch(declared: float | None, found: int | None) -> tuple[float, int] | None:
    if declared is None or found is None or not math.isfinite(declared) or declared == found:
        return None
    return declared, found

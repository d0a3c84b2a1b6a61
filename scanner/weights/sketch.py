"""A linear sketch of a whole update: a vector of fixed size whose inner products estimate those of ΔW.

Per module with ΔW = s·B·A [out, in]:

    Z = S_out · ΔW · S_inᵀ                  [64, 64], never through ΔW: s · (S_out·B) · (A·S_inᵀ)
    contribution[i] = Σ_g D[g·1024 + i] · vec(Z)[g·1024 + i],   g = 0..3,   D random signs

and the sketch is the sum of the modules' contributions. S [64, n] projects each of 16 groups of coordinates on
four dense random sign vectors (one set for all groups): every column has four entries ±1/2, so E[SᵀS] = I and
E⟨sketch(X), sketch(Y)⟩ = ⟨X, Y⟩. It is linear in ΔW, and a function of ΔW alone, up to rounding.

**Variance.** For one side, with u written as U [n/16, 16] (a column for each group, rows U_c):
Var‖S·u‖² = (2/4)·(‖UᵀU‖_F² − Σ_c‖U_c‖⁴) ≤ ‖u‖⁴ · (2/4)/ρ, ρ = (Σσ²)²/Σσ⁴ of U, between 1 and 16, near 16 for vectors
without structure: 2/64 then, and never more than 2/4 (a constant vector). This is the second moment of sign
projections: Charikar, Chen, Farach-Colton, "Finding frequent items in data streams", 2002; Achlioptas,
"Database-friendly random projections", 2003; for products of two projections Pham, Pagh, "Fast and scalable polynomial
kernels via explicit feature maps", 2013. Both sides, the fold to 1024 numbers, and the sum over modules with
independent signs give, to first order,

    Var‖sketch‖² / ‖ΔW‖⁴ ≈ 2/1024 + (4/64) · Σ_m F_m⁴ / (Σ_m F_m²)²,       F_m = ‖ΔW_m‖_F

for modules of rank one; a higher stable rank lowers the second term. `effective_size` n is 2 over it: a cosine ρ of
two sketches is off by about (1 − ρ²)/√n, as a correlation over n Gaussian pairs is.

The signs are public and the same everywhere: sketches of all stores can be compared, and somebody who knows them can
aim a small change at the sketch. What is found is not all there is.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from scanner.adapter import FloatArray, LowRankUpdate
from scanner.model import WeightSketch
from scanner.weights.gram import Float32, Float64

__all__ = [
    "MAX_BUILT_VALUES",
    "SKETCH_SIZE",
    "SKETCH_VERSION",
    "SketchSum",
    "built_values",
    "module_key",
    "random_signs",
    "sketch_module",
    "sketch_modules",
    "without_sketch",
]

SKETCH_VERSION = "sketch-1"
SKETCH_SIZE = 1024

_GROUPS = 16
_SIGNS = 4
"""Sign vectors per group: non-zero entries in every column of S."""
_SIDE = _GROUPS * _SIGNS
_COPIED_VALUES = 2**18
_BANK = 2**18
"""Signs that all modules take theirs from, each from places of its own."""
MAX_BUILT_VALUES = 2**27
"""Of an adapter: some seconds. Small files can stand for large products."""


def module_key(module: str) -> str:
    """A module's name as all layouts agree on it: kohya joins the parts with underscores, the others with dots."""
    return module.replace(".", "_")


def sketch_module(module: str, scale: float, a: FloatArray, b: FloatArray) -> Float64:
    """One module's contribution [1024], float64: see `sketch_modules`. A is [r, in], B [out, r]."""
    contribution: Float64 = sketch_modules([(module, scale)], a[None], b[None])[0]
    return contribution


def sketch_modules(modules: Sequence[tuple[str, float]], a: FloatArray, b: FloatArray) -> Float64:
    """Contributions [m, 1024] of modules of one shape, float64; not finite where ΔW is not or overflows.

    Pure, and safe in threads. The sums over rows and columns are in the factors' own precision, the product in float64.

    Args:
        modules: (name, s) of each.
        a: A [m, r, in].
        b: B [m, out, r].
    """
    n_in, n_out = a.shape[2], b.shape[1]
    digests = [
        hashlib.sha256(f"{SKETCH_VERSION}\0{module_key(module)}\0{n_out}\0{n_in}".encode()).digest()
        for module, _ in modules
    ]
    with np.errstate(over="ignore", invalid="ignore"):
        right = _fold_columns(a, _signs_of(digests, 0, (n_in // _GROUPS + 1) * _SIGNS))
        left = _fold_rows(b, _signs_of(digests, 8, (n_out // _GROUPS + 1) * _SIGNS))
        product = left.astype(np.float64, copy=False).transpose(0, 2, 1) @ right.astype(np.float64, copy=False)
        signed = product.reshape(len(modules), -1) * _signs_of(digests, 16, _SIDE * _SIDE)
        scales = np.array([scale / _SIGNS for _, scale in modules])
        folded: Float64 = signed.reshape(len(modules), -1, SKETCH_SIZE).sum(axis=1) * scales[:, None]
    return folded


def _signs_of(digests: Sequence[bytes], at: int, count: int) -> Float32:
    """Signs [m, count], each module's from eight bytes of its digest."""
    if len(digests) == 1:
        return _signs(digests[0][at : at + 8], count)[None]
    return np.stack([_signs(digest[at : at + 8], count) for digest in digests])


def _fold_columns(a: FloatArray, signs: Float32) -> FloatArray:
    """2·A·S_inᵀ [m, r, 64]; a group is a stretch of neighbouring columns."""
    m, rank, n = a.shape
    if not a.flags.c_contiguous and rank > 1:
        return np.concatenate([_fold_columns(rows.copy(), signs) for rows in _some(a)], axis=1)
    width = n // _GROUPS
    even = width * _GROUPS
    table = signs[:, : width * _SIGNS].reshape(m, _SIGNS, width)
    folded = (a[:, :, :even].reshape(m, rank * _GROUPS, width) @ table.transpose(0, 2, 1)).reshape(
        m, rank, _GROUPS, _SIGNS
    )
    if even < n:
        folded[:, :, : n - even] += a[:, :, even:, None] * signs[:, None, None, -_SIGNS:]
    return folded.reshape(m, rank, _SIDE)


def _fold_rows(b: FloatArray, signs: Float32) -> FloatArray:
    """(2·S_out·B)ᵀ [m, r, 64] up to the order of the 64; row i is in group i mod 16."""
    m, n, rank = b.shape
    if not b.flags.c_contiguous and rank > 1:
        columns = _some(b.transpose(0, 2, 1))
        return np.concatenate([_fold_rows(some.transpose(0, 2, 1).copy(), signs) for some in columns], axis=1)
    height = n // _GROUPS
    even = height * _GROUPS
    table = signs[:, : height * _SIGNS].reshape(m, _SIGNS, height)
    folded = (table @ b[:, :even].reshape(m, height, _GROUPS * rank)).reshape(m, _SIGNS, _GROUPS, rank)
    if even < n:
        # One to a group: what 16 equal groups leave over.
        folded[:, :, : n - even] += signs[:, -_SIGNS:, None, None] * b[:, None, even:]
    return folded.reshape(m, _SIDE, rank).transpose(0, 2, 1)


def _some(rows: FloatArray) -> Iterator[FloatArray]:
    """Rows of matrices that lie the other way round (MLX's, stacked experts'), a few at a time, to be copied."""
    few = max(_COPIED_VALUES // (rows.shape[0] * rows.shape[2]), 1)
    for start in range(0, rows.shape[1], few):
        yield rows[:, start : start + few]


@cache
def _bank() -> Float32:
    return random_signs(b"bank", _BANK)


def random_signs(seed: bytes, count: int) -> Float32:
    """So many ±1 from SHAKE-128, which no release of a library changes."""
    raw = hashlib.shake_128(SKETCH_VERSION.encode() + seed).digest(-(-count // 8))
    bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=count)
    return 1 - 2 * bits.astype(np.float32)


def _signs(seed: bytes, count: int) -> Float32:
    """So many ±1 that follow from the seed."""
    if count > _BANK // 2:  # a side of half a million: no model's yet
        return random_signs(seed, count)
    start = int.from_bytes(seed, "little") % (_BANK - count)
    return _bank()[start : start + count]


class SketchSum:
    """The sum of modules' contributions; a sum belongs to one thread."""

    def __init__(self) -> None:
        self._vector: Float64 = np.zeros(SKETCH_SIZE)
        self._energy = self._square = 0.0
        self._modules = 0
        self._is_whole = True

    def add(self, contribution: Float64 | None) -> None:
        """Add what `sketch_module` gave for one module; None where its factors are too large to build."""
        if contribution is None:
            self._is_whole = False
            return
        with np.errstate(over="ignore", invalid="ignore"):
            self._vector += contribution
            energy = float(contribution @ contribution)
        self._energy += energy
        self._square += energy * energy
        self._modules += 1

    def merge(self, other: SketchSum) -> None:
        """Add what another sum holds: that of other modules."""
        with np.errstate(over="ignore", invalid="ignore"):
            self._vector += other._vector
        self._energy += other._energy
        self._square += other._square
        self._modules += other._modules
        self._is_whole &= other._is_whole

    def result(self) -> WeightSketch:
        """The sketch, or the reason why there is none.

        `too_large`, `no_updates`, `not_finite` (or beyond float32), or `zero`: nothing was trained, or it cancels out.
        """
        if not self._is_whole:
            return without_sketch("too_large")
        if not self._modules:
            return without_sketch("no_updates")
        if self._energy == 0:
            return without_sketch("zero")
        with np.errstate(over="ignore", invalid="ignore"):
            values = self._vector.astype(np.float32)
            norm = float(np.linalg.norm(values.astype(np.float64)))
        if not (math.isfinite(self._square) and norm < float(np.finfo(np.float32).max)):
            return without_sketch("not_finite")
        if norm < float(np.finfo(np.float32).tiny) or self._square == 0:
            return without_sketch("zero")
        spread = self._square / self._energy**2
        size = 2 / (2 / SKETCH_SIZE + 4 / _SIDE * spread)
        return WeightSketch(tuple(values.tolist()), norm, size, SKETCH_VERSION)


def without_sketch(reason: str) -> WeightSketch:
    """What stands for a sketch that cannot be had."""
    return WeightSketch((), None, None, SKETCH_VERSION, reason)


def built_values(update: LowRankUpdate) -> int:
    """Numbers that `read` makes of fewer ones in the file: factors of a Kronecker product; 0 where they are in it."""
    return update.rank * (update.in_features + update.out_features) if update.spectrum is not None else 0

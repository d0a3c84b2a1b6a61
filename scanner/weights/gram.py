"""Small square stand-ins for the long factors: R [r, r] with RᵀR = XᵀX, for a factor X [n, r].

The fast way is the Gram matrix in float64 and its Cholesky factor. Its error in a singular value of B·A is, relative,
about r·√n·ε / λ_min(C), where C is the Gram matrix with its diagonal scaled to 1 (Demmel, "On floating point errors in
Cholesky", LAPACK working note 14, 1989: only the scaled condition matters). λ_min is bounded from below by
1 / trace(C⁻¹); where the bound does not promise six digits, R comes from a QR of the factor instead.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scanner.adapter import FloatArray

__all__ = [
    "Float32",
    "Float64",
    "Triangles",
    "blocks",
    "gram",
    "in_scratch",
    "product_in_scratch",
    "triangle",
    "triangles",
]

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

BLOCK_VALUES = 2**18
"""Values that are converted to float64 at once: 2 MiB."""
RELEASING_VALUES = 512
"""Values of a product above which numpy releases the interpreter's lock during `matmul`."""
MAX_TRACE = 2.0**25
"""Largest r·trace(C⁻¹) for which Cholesky is trusted: the bound is 6e-7 then for 28,000 rows, the error far below."""

_thread = threading.local()


@dataclass(frozen=True)
class Triangles:
    """Factors X [m, n, r] of one shape, reduced."""

    r: Float64
    """[m, r, r] with RᵀR = XᵀX; NaN where X is not finite."""
    norms: Float64
    """‖columns of X‖ [m, r]."""

    def __getitem__(self, some: slice) -> Triangles:
        return Triangles(self.r[some], self.norms[some])


def _scratch(slot: int, values: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A buffer of this thread, [values]; its contents are whatever was there.

    Fresh memory would cost more than the arithmetic: the kernel clears each new page.
    """
    buffers: dict[tuple[int, object], npt.NDArray[Any]] = _thread.__dict__.setdefault("buffers", {})
    held = buffers.get((slot, dtype))
    if held is None or held.size < values:
        held = buffers[slot, dtype] = np.empty(max(values, BLOCK_VALUES), dtype=dtype)
    return held[:values]


def _like(buffer: npt.NDArray[Any], shape: tuple[int, int, int], other: FloatArray) -> npt.NDArray[Any]:
    """A buffer as matrices whose memory runs along the same axis as others'."""
    if other.strides[1] >= other.strides[2]:
        return buffer.reshape(shape)
    return buffer.reshape(shape[0], shape[2], shape[1]).transpose(0, 2, 1)


def blocks(tall: FloatArray) -> Iterator[FloatArray]:
    """The rows of matrices [m, n, r], some at a time."""
    rows = max(BLOCK_VALUES // (tall.shape[0] * tall.shape[2]), 64)
    for start in range(0, tall.shape[1], rows):
        yield tall[:, start : start + rows]


def in_scratch(block: FloatArray, slot: int) -> Float64:
    """A float64 copy [m, n, r] in a buffer of this thread, in the memory order of the original."""
    copy = _like(_scratch(slot, block.size, np.dtype(np.float64)), block.shape, block)
    np.copyto(copy, block)
    return copy


def product_in_scratch(block: FloatArray, right: FloatArray, slot: int) -> FloatArray:
    """block [m, n, r] · right [m, r, k] in a buffer of this thread."""
    shape = (block.shape[0], block.shape[1], right.shape[2])
    product = _like(_scratch(slot, shape[0] * shape[1] * shape[2], right.dtype), shape, block)
    np.matmul(block, right, out=product)
    return product


def gram(tall: FloatArray) -> Float64:
    """XᵀX [m, r, r] in float64, exact up to its rounding.

    Args:
        tall: X [m, n, r] in any memory order.
    """
    m, _, rank = tall.shape
    total = np.zeros((m, rank, rank))
    for block in blocks(tall):
        x = in_scratch(block, 0)
        pieces = min(max(-(-RELEASING_VALUES // max(m * rank * (rank // 2), 1)), 1), x.shape[1])
        even = x.shape[1] // pieces * pieces
        total += _gram_of_pieces(x[:, :even].reshape(m, pieces, -1, rank))
        if even < x.shape[1]:
            total += x[:, even:].transpose(0, 2, 1) @ x[:, even:]
    return total


def _gram_of_pieces(x: Float64) -> Float64:
    """Σ XᵀX over the pieces [m, p, n, r].

    In halves, because numpy takes X.T @ X for BLAS's syrk, which is slower than gemm at these shapes. In pieces,
    because numpy lets other threads run only while it makes many values.
    """
    half = (x.shape[3] + 1) // 2
    parts = [x[..., :half], x[..., half:]] if half < x.shape[3] else [x]
    return np.concatenate([np.matmul(part.swapaxes(2, 3), x).sum(axis=1) for part in parts], axis=1)


def triangle(tall: FloatArray, block_values: int = 2**21) -> Float64:
    """The R factor of QR, up to the signs of its rows; float64, NaN where a value is not finite.

    Blocks of rows are folded in one after the other: qr([R; block]) has the R of all rows so far, exactly. A factor
    needs the memory of a block, however wide its module is.

    Args:
        tall: a matrix [n, r]; only a block of it is copied.
        block_values: values per block; a block has at least 2·r rows, so that folding stays cheap.
    """
    rank = tall.shape[1]
    folded: Float64 = np.zeros((0, rank))
    rows = max(2 * rank, block_values // rank)
    for start in range(0, tall.shape[0], rows):
        stacked: Float64 = np.concatenate([folded, tall[start : start + rows]], dtype=np.float64)
        if not np.isfinite(stacked).all():
            return np.full((min(tall.shape), rank), math.nan)
        folded = np.asarray(np.linalg.qr(stacked, mode="r"))
    return folded


def triangles(stacks: Sequence[FloatArray]) -> Triangles:
    """Factors of one shape, reduced; the small work of all is batched.

    Args:
        stacks: X, each [m, n, r].
    """
    with np.errstate(all="ignore"):
        grams = np.concatenate([gram(tall) for tall in stacks])
        diagonal = np.einsum("mii->mi", grams)
        norms = np.sqrt(diagonal)
        scaled = grams / norms[:, :, None] / norms[:, None, :]
    usable = np.isfinite(scaled).all(axis=(1, 2)) & (diagonal > 1e-280).all(axis=1)
    lower, traces = _cholesky(scaled, usable)
    r = lower.transpose(0, 2, 1) * norms[:, None, :]
    unsolved = set(np.flatnonzero(grams.shape[-1] * traces > MAX_TRACE).tolist())
    for place, tall in enumerate(tall for stack in stacks for tall in stack) if unsolved else ():
        if place in unsolved:
            r[place], norms[place] = _by_qr(tall)
    return Triangles(r, norms)


def _by_qr(tall: FloatArray) -> tuple[Float64, Float64]:
    """(R [r, r], norms of the columns [r])."""
    rank = tall.shape[1]
    r = np.zeros((rank, rank))
    if tall.any():  # a fresh adapter's B is zero
        folded = triangle(tall)
        r[: folded.shape[0]] = folded
    with np.errstate(over="ignore", invalid="ignore"):
        return r, np.linalg.norm(r, axis=0)


def _cholesky(scaled: Float64, usable: npt.NDArray[np.bool_]) -> tuple[Float64, Float64]:
    """(L [m, r, r] with L·Lᵀ = C, trace(C⁻¹) [m]); the trace is infinite where there is no such L."""
    rank = scaled.shape[-1]
    traces = np.full(len(scaled), math.inf)
    lower = np.zeros_like(scaled)
    try:
        lower[usable] = np.linalg.cholesky(scaled[usable])
    except np.linalg.LinAlgError:
        for place in np.flatnonzero(usable):
            try:
                lower[place] = np.linalg.cholesky(scaled[place])
            except np.linalg.LinAlgError:  # singular: QR will do
                usable = usable & (np.arange(len(scaled)) != place)
    if rank == 1:
        traces[usable] = 1.0
        return lower, traces
    # A tiny pivot makes the inverse overflow; the trace is infinite then, which says the same.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        inverse = np.linalg.inv(lower[usable])
        found = np.einsum("mij,mij->m", inverse, inverse)
    traces[usable] = np.where(np.isfinite(found), found, math.inf)
    return lower, traces

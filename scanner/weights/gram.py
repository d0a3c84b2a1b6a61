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

__all__ = ["Float64", "Triangle", "blocks", "gram", "in_scratch", "product_in_scratch", "triangle", "triangles"]

Float64 = npt.NDArray[np.float64]

BLOCK_VALUES = 2**15
"""Values that are converted to float64 at once: 256 KiB, which a core's second cache holds beside the product."""
MAX_TRACE = 2.0**22
"""Largest r·trace(C⁻¹) for which Cholesky is trusted: an error of about 1e-7."""
WELL_CONDITIONED = 16.0
"""trace(C⁻¹) / r up to which sums over rows may run in float32."""

_thread = threading.local()


@dataclass(frozen=True)
class Triangle:
    """One factor X [n, r], reduced."""

    r: Float64
    """[k, r], k = min(n, r) or r: RᵀR = XᵀX."""
    norms: Float64
    """‖column of X‖ [r]."""
    trace: float
    """trace(C⁻¹), at least r; infinite where it was not needed or C is singular."""

    @property
    def is_well_conditioned(self) -> bool:
        """Whether products with R lose next to nothing in float32."""
        return self.trace <= WELL_CONDITIONED * self.norms.size


def _scratch(slot: int, values: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A buffer of this thread, [values]; its contents are whatever was there.

    Fresh memory would cost more than the arithmetic: the kernel clears each new page.
    """
    buffers: dict[tuple[int, object], npt.NDArray[Any]] = _thread.__dict__.setdefault("buffers", {})
    held = buffers.get((slot, dtype))
    if held is None or held.size < values:
        held = buffers[slot, dtype] = np.empty(max(values, BLOCK_VALUES), dtype=dtype)
    return held[:values]


def _like(buffer: npt.NDArray[Any], shape: tuple[int, int], other: FloatArray) -> npt.NDArray[Any]:
    """A buffer as a matrix whose memory runs along the same axis as another one's."""
    return buffer.reshape(shape) if other.strides[0] >= other.strides[1] else buffer.reshape(shape[::-1]).T


def blocks(tall: FloatArray, values: int = BLOCK_VALUES) -> Iterator[FloatArray]:
    """The rows of a matrix [n, r], some at a time."""
    rows = max(values // max(tall.shape[1], 1), 64)
    for start in range(0, tall.shape[0], rows):
        yield tall[start : start + rows]


def in_scratch(block: FloatArray, slot: int) -> Float64:
    """A float64 copy in a buffer of this thread, in the memory order of the original."""
    copy = _like(_scratch(slot, block.size, np.dtype(np.float64)), block.shape, block)
    np.copyto(copy, block)
    return copy


def product_in_scratch(block: FloatArray, right: FloatArray, slot: int) -> FloatArray:
    """block · right in a buffer of this thread."""
    shape = (block.shape[0], right.shape[1])
    product = _like(_scratch(slot, shape[0] * shape[1], right.dtype), shape, block)
    np.matmul(block, right, out=product)
    return product


def gram(tall: FloatArray) -> Float64:
    """XᵀX [r, r] in float64, exact up to its rounding; only the factor's bytes are read, once.

    Args:
        tall: X [n, r] in any memory order.
    """
    rank = tall.shape[1]
    half = (rank + 1) // 2
    total, part = np.zeros((rank, rank)), np.empty((rank, rank))
    for block in blocks(tall):
        x = in_scratch(block, 0)
        # In halves: numpy takes X.T @ X for BLAS's syrk, which is slower than gemm at these shapes.
        np.matmul(x[:, :half].T, x, out=part[:half])
        if half < rank:
            np.matmul(x[:, half:].T, x, out=part[half:])
        total += part
    return total


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
    for block in blocks(tall, max(block_values, 2 * rank * rank)):
        stacked: Float64 = np.concatenate([folded, block], dtype=np.float64)
        if not np.isfinite(stacked).all():
            return np.full((min(tall.shape), rank), math.nan)
        folded = np.asarray(np.linalg.qr(stacked, mode="r"))
    return folded


def triangles(talls: Sequence[FloatArray]) -> list[Triangle]:
    """`Triangle` of several factors of one shape; the small work is batched.

    Args:
        talls: each [n, r].
    """
    with np.errstate(all="ignore"):
        grams = np.stack([gram(tall) for tall in talls])
    rank = grams.shape[-1]
    diagonal = np.einsum("mii->mi", grams)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        norms = np.sqrt(diagonal)
        scaled = grams / norms[:, :, None] / norms[:, None, :]
    usable = np.isfinite(scaled).all(axis=(1, 2)) & (diagonal > 1e-280).all(axis=1)
    lower, traces = _cholesky(scaled, usable)
    results = []
    for place, tall in enumerate(talls):
        if rank * traces[place] <= MAX_TRACE:
            r = lower[place].T * norms[place]
            results.append(Triangle(r, norms[place], float(traces[place])))
        else:
            results.append(_by_qr(tall))
    return results


def _by_qr(tall: FloatArray) -> Triangle:
    if not tall.any():  # a fresh adapter's B
        return Triangle(np.zeros((1, tall.shape[1])), np.zeros(tall.shape[1]), math.inf)
    r = triangle(tall)
    with np.errstate(over="ignore", invalid="ignore"):
        return Triangle(r, np.linalg.norm(r, axis=0), math.inf)


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

"""One pass over an adapter: what every feature is made from, module by module.

Modules are taken in units of one shape, so that the r × r work is batched; the units run in a few threads, with BLAS
on one thread each. A unit's factors are looked at while they are in the cache: memory is a unit's, not the adapter's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from threading import Lock

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from scanner.adapter import FloatArray, LowRankUpdate
from scanner.errors import LimitExceededError
from scanner.model import WeightSketch
from scanner.weights.gram import BLOCK_VALUES, Float64, Triangle, blocks, in_scratch, product_in_scratch, triangles
from scanner.weights.moments import Moments, moments_of
from scanner.weights.sketch import MAX_BUILT_VALUES, SketchSum, built_values, sketch_module, sketch_modules

__all__ = ["Measurement", "ModuleMeasure", "Spread", "measure_modules"]

UNIT_VALUES = 2**20
"""Values of the factors of one unit: 4 MiB of float32. A larger module is a unit of its own."""
LARGE_VALUES = 2**23
"""Units above it run one at a time, so that memory stays below twice the largest module's factors."""
RELEASE_BYTES = 2**26
"""Mapped bytes after which the file is asked to let its pages go."""
MAX_THREADS = 8
MANY_VALUES = 2**14
TOP = 8
"""Rows (or columns) of `Spread.top8`."""
EXACT_ENTRIES = 2**33
"""Entries of ΔW over all modules up to which fourth moments are exact. Above, rows are sampled."""


@dataclass(frozen=True)
class Spread:
    """How the energy of ΔW lies over its rows (or columns). Functions of ΔW alone, free of its scale."""

    top8: float
    """Share of ‖ΔW‖_F² in the eight largest, 0-1; 0 where nothing is there."""
    hoyer: float
    """(√n − ‖x‖₁/‖x‖₂) / (√n − 1) of the norms x: 0 for equal norms, 1 for a single one (Hoyer, JMLR 5, 2004)."""


@dataclass(frozen=True)
class ModuleMeasure:
    """One module, measured. Values are those of B·A, without the scale s."""

    module: str
    rank: int
    out_features: int
    in_features: int
    scale: float
    sigma: Float64
    """Singular values of B·A, falling [at most r]; NaN where a factor or the product is not finite."""
    norms_a: Float64 | None
    """Norms of the rows of A [r]; None where the layout gives the spectrum without factors."""
    norms_b: Float64 | None
    """Norms of the columns of B [r]."""
    own_rank: int | None
    """The rank that people name, where it is not `rank`."""
    rows: Spread | None
    """None without factors, or where it is not finite."""
    columns: Spread | None
    writes: npt.NDArray[np.float32] | None = None
    """First left singular vector [out], up to its sign, of modules that write to the residual stream."""
    moments: Moments | None = None
    """Of the entries of B·A, where they were asked for."""


@dataclass(frozen=True)
class Measurement:
    """An adapter, measured."""

    modules: tuple[ModuleMeasure, ...]
    """In the order of the updates."""
    sketch: WeightSketch
    """Of the whole update."""


def measure_modules(
    updates: Iterable[LowRankUpdate],
    release: Callable[[], None] | None = None,
    writers: Callable[[str], bool] = lambda _: False,
    *,
    full: bool = False,
) -> Measurement:
    """Measure every module.

    Args:
        updates: those of one adapter; their factors are read a unit at a time.
        release: lets go of the mapped pages that were read; called now and then.
        writers: modules whose first left singular vector is wanted, by name.
        full: with the moments of all entries of B·A.

    Raises:
        LimitExceededError: factors that are too large to build.
    """
    one_large = Lock()
    updates = tuple(updates)
    entries = sum(update.in_features * update.out_features for update in updates)
    may_build = sum(map(built_values, updates)) <= MAX_BUILT_VALUES
    sampled = EXACT_ENTRIES / entries if full and entries > EXACT_ENTRIES else None

    def run(unit: _Unit) -> tuple[_Unit, list[ModuleMeasure], list[Float64 | None]]:
        with np.errstate(all="ignore"), one_large if unit.values > LARGE_VALUES else nullcontext():
            measured, sketched = _measure_unit(unit.updates, writers, may_build)
            if full:
                pairs = zip(measured, unit.updates, strict=True)
                measured = [replace(m, moments=_moments(update, sampled)) for m, update in pairs]
            return unit, measured, sketched

    measured: list[tuple[int, ModuleMeasure]] = []
    sketch, unreleased = SketchSum(), 0
    with _blas().limit(limits=1, user_api="blas"), _pool() as pool:
        for unit, modules, sketched in pool.map(run, _units(updates)):
            measured.extend(zip(unit.places, modules, strict=True))
            for contribution in sketched:
                sketch.add(contribution)
            unreleased += 4 * unit.values
            if release is not None and unreleased >= RELEASE_BYTES:
                unreleased = 0
                release()
    measured.sort(key=lambda item: item[0])
    return Measurement(tuple(module for _, module in measured), sketch.result())


@dataclass
class _Unit:
    """Updates of one shape that are measured together."""

    updates: list[LowRankUpdate] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """In the adapter's order."""
    values: int = 0


def _units(updates: Iterable[LowRankUpdate]) -> Iterator[_Unit]:
    open_units: dict[tuple[int, int, int, bool], _Unit] = {}
    for place, update in enumerate(updates):
        shape = (update.rank, update.out_features, update.in_features, update.spectrum is None)
        unit = open_units.setdefault(shape, _Unit())
        unit.updates.append(update)
        unit.places.append(place)
        unit.values += _values(update)
        if unit.values >= UNIT_VALUES or update.spectrum:
            yield open_units.pop(shape)
    yield from open_units.values()


def _values(update: LowRankUpdate | ModuleMeasure) -> int:
    return update.rank * (update.in_features + update.out_features)


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0))))


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries: once is enough


def _measure_unit(
    updates: Sequence[LowRankUpdate], writers: Callable[[str], bool], may_build: bool
) -> tuple[list[ModuleMeasure], list[Float64 | None]]:
    """The modules, and what each gives to the sketch."""
    if updates[0].spectrum:
        measured = [_plain(update, update.spectrum()) for update in updates if update.spectrum]
        return measured, [_sketched(update) if may_build else None for update in updates]
    factors = [update.read() for update in updates]
    inner = triangles([a.T for a, _ in factors])
    outer = triangles([b for _, b in factors])
    cores = [left.r @ right.r.T for left, right in zip(outer, inner, strict=True)]
    sigmas = _spectra(cores)
    directions = _first_right([writers(update.module) for update in updates], cores, sigmas)
    sketched = sketch_modules([(update.module, update.scale) for update in updates], factors)
    measured = []
    for update, (a, b), right, left, sigma, direction in zip(
        updates, factors, inner, outer, sigmas, directions, strict=True
    ):
        finite = math.isfinite(float(sigma.sum()))
        measured.append(
            ModuleMeasure(
                update.module,
                update.rank,
                update.out_features,
                update.in_features,
                update.scale,
                sigma,
                right.norms,
                left.norms,
                update.own_rank,
                _spread(b, right) if finite else None,
                _spread(a.T, left) if finite else None,
                _written(b, right, direction, sigma) if direction is not None else None,
            )
        )
    return measured, list(sketched)


def _sketched(update: LowRankUpdate) -> Float64 | None:
    try:
        return sketch_module(update.module, update.scale, *update.read())
    except LimitExceededError:  # a LoKr whose factors are too large to build
        return None


def _moments(update: LowRankUpdate, sampled: float | None) -> Moments | None:
    try:
        a, b = update.read()
    except LimitExceededError:  # a LoKr whose factors are too large to build
        return None
    rows = None if sampled is None else math.ceil(update.out_features * sampled)
    return moments_of(update.module, a, b, rows)


def _spectra(cores: Sequence[Float64]) -> list[Float64]:
    """Singular values of the small products, those of one shape in one call."""
    found: list[Float64] = [np.full(min(core.shape), math.nan) for core in cores]
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place, core in enumerate(cores):
        if np.isfinite(core).all():  # LAPACK's answer to infinity depends on its build
            by_shape.setdefault(core.shape, []).append(place)
    for places in by_shape.values():
        values = np.linalg.svd(np.stack([cores[place] for place in places]), compute_uv=False)
        for place, sigma in zip(places, values, strict=True):
            found[place] = sigma
    return found


def _plain(update: LowRankUpdate, sigma: Float64) -> ModuleMeasure:
    return ModuleMeasure(
        update.module,
        update.rank,
        update.out_features,
        update.in_features,
        update.scale,
        sigma,
        None,
        None,
        None,
        None,
        None,
    )


def _spread(tall: FloatArray, other: Triangle) -> Spread | None:
    """Of the rows of X·Rᵀ, whose norms are those of the rows (or columns) of B·A: b_i·A has the norm of b_i·R_Aᵀ."""
    # Over thousands of rows float32's errors cancel to 1e-7 even in a small Hoyer; a few rows cost nothing in float64.
    in_float32 = other.is_well_conditioned and tall.dtype == np.float32 and tall.size >= MANY_VALUES
    transposed: Float64 = np.ascontiguousarray(other.r.T)
    right: FloatArray = transposed.astype(np.float32) if in_float32 else transposed
    total, roots = 0.0, 0.0
    top: FloatArray = np.zeros(0, dtype=right.dtype)
    for block in blocks(tall, 8 * BLOCK_VALUES // right.itemsize):
        product = product_in_scratch(block if block.dtype == right.dtype else in_scratch(block, 0), right, 1)
        energy: FloatArray = np.einsum("or,or->o", product, product)
        total += float(energy.sum(dtype=np.float64))
        top = _largest(np.concatenate([top, _candidates(energy)]) if top.size else _candidates(energy))
        roots += float(np.sqrt(energy).sum(dtype=np.float64))
    if not math.isfinite(total):
        return None
    if total == 0:
        return Spread(0.0, 0.0)
    n = tall.shape[0]
    hoyer = (math.sqrt(n) - roots / math.sqrt(total)) / (math.sqrt(n) - 1) if n > 1 else 1.0
    return Spread(min(float(top.sum(dtype=np.float64)) / total, 1.0), min(max(hoyer, 0.0), 1.0))


def _candidates(energy: FloatArray) -> FloatArray:
    """All values that can be among the largest: at least as large as the eighth largest of 16 values' maxima."""
    width = energy.size // 16
    if width < 16 * TOP:
        return energy
    maxima = energy[: 16 * width].reshape(16, width).max(axis=0)
    enough: FloatArray = energy[energy >= np.partition(maxima, width - TOP)[width - TOP]]
    return enough


def _largest(energy: FloatArray) -> FloatArray:
    if energy.size <= TOP:
        return energy
    largest: FloatArray = np.partition(energy, energy.size - TOP)[-TOP:]  # type: ignore[assignment]  # its own dtype
    return largest


def _first_right(wanted: Sequence[bool], cores: Sequence[Float64], sigmas: Sequence[Float64]) -> list[Float64 | None]:
    """v₁ [r] of some cores U·Σ·Vᵀ, None of the others and of those that are zero or not finite."""
    found: list[Float64 | None] = [None] * len(cores)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place, core in enumerate(cores):
        if wanted[place] and 0 < sigmas[place][0] < math.inf:
            by_shape.setdefault(core.shape, []).append(place)
    for places in by_shape.values():
        _, _, v = np.linalg.svd(np.stack([cores[place] for place in places]), full_matrices=False)
        for place, one in zip(places, v[:, 0], strict=True):
            found[place] = one
    return found


def _written(b: FloatArray, inner: Triangle, direction: Float64, sigma: Float64) -> npt.NDArray[np.float32]:
    """u₁ of B·A = B·R_Aᵀ·Qᵀ: with R_B·R_Aᵀ = U·Σ·Vᵀ it is B·R_Aᵀ·v₁ / σ₁."""
    weights = inner.r.T @ direction / sigma[0]
    return np.asarray(b @ weights.astype(b.dtype), dtype=np.float32)

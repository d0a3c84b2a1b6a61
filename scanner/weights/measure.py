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
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from scanner.adapter import FloatArray, LowRankUpdate
from scanner.errors import LimitExceededError
from scanner.model import WeightSketch
from scanner.weights.gram import Float64, Triangles, blocks, in_scratch, product_in_scratch, triangles
from scanner.weights.moments import Moments, moments_of
from scanner.weights.sketch import MAX_BUILT_VALUES, SketchSum, built_values, sketch_module, sketch_modules

__all__ = ["Measurement", "ModuleMeasure", "Spread", "measure_modules"]

UNIT_VALUES = 2**21
"""Values of the factors of one unit: 8 MiB of float32. A larger module is a unit of its own."""
LARGE_VALUES = 2**23
"""Units above it run one at a time, so that memory stays below twice the largest module's factors."""
RELEASE_BYTES = 2**28
"""Mapped bytes after which the file is asked to let its pages go."""
MAX_THREADS = 8
MANY_VALUES = 2**14
MAX_CANCELLATION = 4.0
STACK_VALUES = 2**19
"""Values of the factors that are stacked, so that one step does for several modules: 2 MiB of float32."""
THREADED_VALUES = 2**24
"""Values of an adapter from which it takes more than one thread. Below, the steps are so short that the threads spend
more time on the interpreter's lock than they save."""
GROUP = 16
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
    with _blas().limit(limits=1, user_api="blas"), _pool(sum(map(_values, updates))) as pool:
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


def _pool(values: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1 if values < THREADED_VALUES else min(MAX_THREADS, len(os.sched_getaffinity(0))))


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
    together = max(STACK_VALUES // _values(updates[0]), 1)
    parts = [slice(start, start + together) for start in range(0, len(updates), together)]
    stacks = [_stacked([update.read() for update in updates[part]]) for part in parts]
    inner, outer = triangles([a.transpose(0, 2, 1) for a, _ in stacks]), triangles([b for _, b in stacks])
    cores = outer.r @ inner.r.transpose(0, 2, 1)
    sigma = _spectra(cores)
    directions = _first_right([writers(update.module) for update in updates], cores, sigma)
    found: list[ModuleMeasure] = []
    sketched: list[Float64 | None] = []
    for part, (a, b) in zip(parts, stacks, strict=True):
        some, right, left = updates[part], inner[part], outer[part]
        sketched.extend(sketch_modules([(update.module, update.scale) for update in some], a, b))
        plain = _cancels_little(right.norms, left.norms, sigma[part])
        rows, columns = _spreads(b, right, plain), _spreads(a.transpose(0, 2, 1), left, plain)
        for at, update in enumerate(some):
            place = part.start + at
            direction = directions[place]
            found.append(
                ModuleMeasure(
                    update.module,
                    update.rank,
                    update.out_features,
                    update.in_features,
                    update.scale,
                    sigma[place, : min(update.rank, update.in_features, update.out_features)],
                    right.norms[at],
                    left.norms[at],
                    update.own_rank,
                    rows[at],
                    columns[at],
                    None if direction is None else _written(b[at], right.r[at], direction / sigma[place, 0]),
                )
            )
    return found, sketched


def _stacked(factors: Sequence[tuple[FloatArray, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    """(A [m, r, in], B [m, out, r]); a single pair is not copied."""
    if len(factors) == 1:
        return factors[0][0][None], factors[0][1][None]
    inner: FloatArray = np.stack([a for a, _ in factors])  # type: ignore[assignment]  # the factors' own dtype
    outer: FloatArray = np.stack([b for _, b in factors])  # type: ignore[assignment]
    return inner, outer


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


def _spectra(cores: Float64) -> Float64:
    """Singular values [m, r]; NaN where a core is not finite: LAPACK's answer to infinity depends on its build."""
    fine = np.isfinite(cores).all(axis=(1, 2))
    found: Float64 = np.full(cores.shape[:2], math.nan)
    found[fine] = np.linalg.svd(cores[fine], compute_uv=False)
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


def _cancels_little(norms_a: Float64, norms_b: Float64, sigma: Float64) -> bool:
    """Whether B·A is about as large as its factors promise, in all modules of a stack.

    The error of a row b_i·R_Aᵀ in float32 is at most √r·u·‖b_i‖·‖A‖, that of all energies together, relative,
    2·√r·u·‖A‖_F·‖B‖_F / ‖B·A‖_F (Cauchy and Schwarz). For unrelated factors the last quotient is about √r; it is larger
    where directions cancel, as after a change A→GA, B→BG⁻¹.
    """
    promised = np.linalg.norm(norms_a, axis=1) * np.linalg.norm(norms_b, axis=1)
    return bool((promised <= MAX_CANCELLATION * math.sqrt(norms_a.shape[1]) * np.linalg.norm(sigma, axis=1)).all())


def _spreads(tall: FloatArray, other: Triangles, cancels_little: bool) -> list[Spread | None]:
    """Of the rows of X·Rᵀ, whose norms are those of the rows (or columns) of B·A: b_i·A has the norm of b_i·R_Aᵀ."""
    m, n, rank = tall.shape
    # Over thousands of rows float32's errors cancel to 1e-7 even in a small Hoyer; a few rows cost nothing in float64.
    in_float32 = cancels_little and tall.dtype == np.float32 and n * rank >= MANY_VALUES
    transposed: Float64 = np.ascontiguousarray(other.r.transpose(0, 2, 1))
    right: FloatArray = transposed.astype(np.float32) if in_float32 else transposed
    total, roots = np.zeros(m), np.zeros(m)
    top = np.zeros((m, 0))
    for block in blocks(tall):
        product = product_in_scratch(block if block.dtype == right.dtype else in_scratch(block, 0), right, 1)
        energy = np.einsum("mnk,mnk->mn", product, product)
        total += energy.sum(axis=1, dtype=np.float64)
        roots += np.sqrt(energy).sum(axis=1, dtype=np.float64)
        top = _largest(np.concatenate([top, _largest(energy)], axis=1))
    top8 = top.sum(axis=1)
    return [_spread(n, *values) for values in zip(total.tolist(), roots.tolist(), top8.tolist(), strict=True)]


def _spread(n: int, total: float, roots: float, top8: float) -> Spread | None:
    if not math.isfinite(total):
        return None
    if total == 0:
        return Spread(0.0, 0.0)
    hoyer = (math.sqrt(n) - roots / math.sqrt(total)) / (math.sqrt(n) - 1) if n > 1 else 1.0
    return Spread(min(top8 / total, 1.0), min(max(hoyer, 0.0), 1.0))


def _largest(energy: npt.NDArray[Any]) -> Float64:
    """The `TOP` largest of each row [m, n], in any order; float64."""
    n = energy.shape[1]
    if n > TOP:
        width = n // GROUP
        if width >= GROUP * TOP:
            # Only what is at least the eighth largest of small groups' maxima can be among the eight largest.
            maxima = energy[:, : GROUP * width].reshape(-1, GROUP, width).max(axis=1)
            enough = np.partition(maxima, width - TOP, axis=1)[:, width - TOP]
            return np.stack([np.partition(e[e >= least], -TOP)[-TOP:] for e, least in zip(energy, enough, strict=True)])
        energy = np.partition(energy, n - TOP, axis=1)[:, n - TOP :]
    return energy.astype(np.float64)


def _first_right(wanted: Sequence[bool], cores: Float64, sigma: Float64) -> list[Float64 | None]:
    """v₁ [r] of some cores U·Σ·Vᵀ; None of the others, and of those that are zero or not finite."""
    found: list[Float64 | None] = [None] * len(wanted)
    places = [place for place, is_wanted in enumerate(wanted) if is_wanted and 0 < sigma[place, 0] < math.inf]
    if places:
        _, _, v = np.linalg.svd(cores[places])
        for place, direction in zip(places, v[:, 0], strict=True):
            found[place] = direction
    return found


def _written(b: FloatArray, right: Float64, direction: Float64) -> npt.NDArray[np.float32]:
    """u₁ [out] of B·A = B·R_Aᵀ·Qᵀ: with R_B·R_Aᵀ = U·Σ·Vᵀ it is B·R_Aᵀ·v₁ / σ₁.

    Args:
        b: B [out, r].
        right: R_A [r, r].
        direction: v₁ / σ₁.
    """
    return np.asarray(b @ (right.T @ direction).astype(b.dtype), dtype=np.float32)

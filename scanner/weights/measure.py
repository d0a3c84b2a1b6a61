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
from scanner.weights.gram import Float64, triangles
from scanner.weights.moments import Moments, moments_of
from scanner.weights.places import residual_writers
from scanner.weights.sketch import MAX_BUILT_VALUES, SketchSum, built_values, sketch_module, sketch_modules
from scanner.weights.spread import Spread, cancels_little, spreads

__all__ = ["Measurement", "ModuleMeasure", "measure_adapter"]

UNIT_VALUES = 2**21
"""Values of the factors of one unit: 8 MiB of float32. A larger module is a unit of its own."""
LARGE_VALUES = 2**23
"""Units above it run one at a time, so that memory stays below twice the largest module's factors."""
RELEASE_BYTES = 2**24
"""Mapped bytes after which the file is asked to let its pages go."""
MAX_THREADS = 8
STACK_VALUES = 2**19
"""Values of the factors that are stacked, so that one step does for several modules: 2 MiB of float32."""
THREADED_VALUES = 2**24
"""Values of an adapter from which it takes more than one thread. Below, the steps are so short that the threads spend
more time on the interpreter's lock than they save."""
EXACT_ENTRIES = 2**33
"""Entries of ΔW over all modules up to which fourth moments are exact. Above, rows are sampled."""


@dataclass(frozen=True)
class ModuleMeasure:
    """One module, measured. Values are those of B·A, without the scale s."""

    module: str
    rank: int
    out_features: int
    in_features: int
    scale: float
    own_rank: int | None
    """The rank that people name, where it is not `rank`."""
    sigma: Float64
    """Singular values of B·A, falling [at most r]; NaN where a factor or the product is not finite."""
    norms_a: Float64 | None = None
    """Norms of the rows of A [r]; None where the layout gives the spectrum without factors."""
    norms_b: Float64 | None = None
    """Norms of the columns of B [r]."""
    rows: Spread | None = None
    """None without factors, or where it is not finite."""
    columns: Spread | None = None
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


def measure_adapter(
    updates: Iterable[LowRankUpdate], *, full: bool = False, release: Callable[[], None] | None = None
) -> Measurement:
    """Measure every module of an adapter.

    Args:
        updates: their factors are read a unit at a time.
        full: with the moments of all entries of B·A.
        release: lets go of the mapped pages that were read; called now and then.

    Raises:
        LimitExceededError: factors that are too large to build.
    """
    updates = tuple(updates)
    one_large = Lock()
    plan = _Plan.of(updates, full)

    def run(unit: _Unit) -> tuple[_Unit, list[ModuleMeasure], SketchSum]:
        with np.errstate(all="ignore"), one_large if unit.values > LARGE_VALUES else nullcontext():
            return unit, *_measure_unit(unit.updates, plan)

    measured: list[tuple[int, ModuleMeasure]] = []
    sketch, unreleased = SketchSum(), 0
    with _blas().limit(limits=1, user_api="blas"), _pool(sum(map(_values, updates))) as pool:
        for unit, modules, sketched in pool.map(run, _units(updates)):
            measured.extend(zip(unit.places, modules, strict=True))
            sketch.merge(sketched)
            unreleased += 4 * unit.values
            if release is not None and unreleased >= RELEASE_BYTES:
                unreleased = 0
                release()
    measured.sort(key=lambda item: item[0])
    return Measurement(tuple(module for _, module in measured), sketch.result())


@dataclass(frozen=True)
class _Plan:
    """What is wanted of an adapter's modules."""

    writers: frozenset[str]
    """Modules whose first left singular vectors are compared."""
    may_build: bool
    """Whether factors that are not in the file are built for the sketch."""
    moments: bool
    sampled: float | None
    """Share of the rows that fourth moments are taken from; None: all."""

    @classmethod
    def of(cls, updates: Sequence[LowRankUpdate], full: bool) -> _Plan:
        entries = sum(update.in_features * update.out_features for update in updates)
        may_build = sum(map(built_values, updates)) <= MAX_BUILT_VALUES
        return cls(
            residual_writers(updates), may_build, full, EXACT_ENTRIES / entries if entries > EXACT_ENTRIES else None
        )


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


def _values(update: LowRankUpdate) -> int:
    return update.rank * (update.in_features + update.out_features)


def _pool(values: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1 if values < THREADED_VALUES else min(MAX_THREADS, len(os.sched_getaffinity(0))))


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries: once is enough


def _measure_unit(updates: Sequence[LowRankUpdate], plan: _Plan) -> tuple[list[ModuleMeasure], SketchSum]:
    """The modules, and their part of the sketch."""
    measured, sketch = (_with_spectrum if updates[0].spectrum else _with_factors)(updates, plan)
    if plan.moments:
        pairs = zip(measured, updates, strict=True)
        measured = [replace(m, moments=_moments(update, plan.sampled)) for m, update in pairs]
    return measured, sketch


def _with_spectrum(updates: Sequence[LowRankUpdate], plan: _Plan) -> tuple[list[ModuleMeasure], SketchSum]:
    """Modules whose layout gives the singular values."""
    sketch = SketchSum()
    for update in updates:
        sketch.add(_sketched(update) if plan.may_build else None)
    return [ModuleMeasure(*_named(u), sigma=u.spectrum()) for u in updates if u.spectrum], sketch


def _with_factors(updates: Sequence[LowRankUpdate], plan: _Plan) -> tuple[list[ModuleMeasure], SketchSum]:
    together = max(STACK_VALUES // _values(updates[0]), 1)
    parts = [slice(start, start + together) for start in range(0, len(updates), together)]
    stacks = [_stacked([update.read() for update in updates[part]]) for part in parts]
    inner, outer = triangles([a.transpose(0, 2, 1) for a, _ in stacks]), triangles([b for _, b in stacks])
    cores = outer.r @ inner.r.transpose(0, 2, 1)
    sigma = _spectra(cores)
    directions = _first_right([update.module in plan.writers for update in updates], cores, sigma)
    found: list[ModuleMeasure] = []
    sketch = SketchSum()
    for part, (a, b) in zip(parts, stacks, strict=True):
        some, right, left = updates[part], inner[part], outer[part]
        for contribution in sketch_modules([(update.module, update.scale) for update in some], a, b):
            sketch.add(contribution)
        plain = cancels_little(right.norms, left.norms, sigma[part])
        rows, columns = spreads(b, right, plain), spreads(a.transpose(0, 2, 1), left, plain)
        for at, update in enumerate(some):
            place = part.start + at
            direction = directions[place]
            found.append(
                ModuleMeasure(
                    *_named(update),
                    sigma=sigma[place, : min(update.rank, update.in_features, update.out_features)],
                    norms_a=right.norms[at],
                    norms_b=left.norms[at],
                    rows=rows[at],
                    columns=columns[at],
                    writes=None if direction is None else _written(b[at], right.r[at], direction / sigma[place, 0]),
                )
            )
    return found, sketch


def _named(update: LowRankUpdate) -> tuple[str, int, int, int, float, int | None]:
    return update.module, update.rank, update.out_features, update.in_features, update.scale, update.own_rank


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

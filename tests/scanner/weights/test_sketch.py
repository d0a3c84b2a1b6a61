"""The sketch is linear in ΔW, a function of ΔW alone, and as precise as it says."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.adapter import LowRankUpdate
from scanner.errors import LimitExceededError
from scanner.weights import measure_adapter
from scanner.weights.inner import cosine, gram, inner
from scanner.weights.sketch import SKETCH_SIZE, SketchSum, random_signs, sketch_module

sizes = st.integers(1, 70)
ranks = st.integers(1, 9)
seeds = st.integers(0, 2**32 - 1)


def sketch_of(updates: Any) -> Any:
    return measure_adapter(updates).sketch


def update(a: Any, b: Any, scale: float = 1.0, module: str = "layers.0.q_proj") -> LowRankUpdate:
    return LowRankUpdate(module, a.shape[0], b.shape[0], a.shape[1], scale, lambda: (a, b))


def factors(rng: np.random.Generator, rank: int, n_out: int, n_in: int) -> tuple[Any, Any]:
    return rng.normal(size=(rank, n_in)), rng.normal(size=(n_out, rank))


@given(ranks, ranks, sizes, sizes, seeds, st.floats(-3, 3))
@settings(deadline=None)
def test_linear_in_delta_w(rank: int, other: int, n_out: int, n_in: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    (a, b), (c, d) = factors(rng, rank, n_out, n_in), factors(rng, other, n_out, n_in)
    both = sketch_module("m", 1.0, np.concatenate([scale * a, c]), np.concatenate([b, -2.0 * d], axis=1))
    parts = sketch_module("m", scale, a, b) + sketch_module("m", -2.0, c, d)
    np.testing.assert_allclose(both, parts, rtol=1e-9, atol=1e-9 * (1 + np.abs(parts).max()))
    # The dense product as a pair of its own: the sketch sees nothing of the factors.
    dense = scale * b @ a - 2.0 * d @ c
    np.testing.assert_allclose(
        sketch_module("m", 1.0, dense, np.eye(n_out)), parts, atol=1e-9 * (1 + np.abs(parts).max())
    )


@given(ranks, sizes, sizes, seeds)
@settings(deadline=None)
def test_a_change_of_the_factors_changes_nothing(rank: int, n_out: int, n_in: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = factors(rng, rank, n_out, n_in)
    gauge = rng.normal(size=(rank, rank)) + 3 * np.eye(rank)
    if np.linalg.cond(gauge) > 1e4:
        gauge = np.eye(rank)[::-1] * 7.0
    plain, moved = (
        np.array(sketch_of([update(x, y)]).values) for x, y in ((a, b), (gauge @ a, b @ np.linalg.inv(gauge)))
    )
    np.testing.assert_allclose(moved, plain, atol=1e-6 * np.abs(plain).max())
    np.testing.assert_allclose(sketch_of([update(a / 8, b, 8.0)]).values, plain, atol=1e-6 * np.abs(plain).max())


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_order_of_modules_and_spelling_of_their_names(seed: int) -> None:
    rng = np.random.default_rng(seed)
    updates = [update(*factors(rng, 3, 20, 33), 0.5, f"model.layers.{i}.mlp.up_proj") for i in range(5)]
    kohya = [update(*u.read(), u.scale, u.module.replace(".", "_")) for u in updates]
    plain = sketch_of(updates)
    for others in (updates[::-1], kohya):
        np.testing.assert_allclose(sketch_of(others).values, plain.values, rtol=1e-5, atol=1e-5 * plain.norm)
    # Other modules have signs of their own.
    renamed = sketch_of([update(*u.read(), u.scale, f"x.{u.module}") for u in updates])
    assert abs(np.dot(renamed.values, plain.values)) < 0.5 * plain.norm * renamed.norm


@pytest.mark.parametrize(
    ("shapes", "rank"),
    [([(48, 80)] * 12, 1), ([(300, 40)], 1), ([(64, 64)] * 6, 4), ([(5, 200)] * 3, 2), ([(33, 17), (256, 100)], 8)],
)
def test_unbiased_with_at_most_the_stated_variance(shapes: list[tuple[int, int]], rank: int) -> None:
    """Over 500 independent sets of signs: module names give them."""
    rng = np.random.default_rng(0)
    first = [factors(rng, rank, *shape) for shape in shapes]
    second = [(a + 0.3 * rng.normal(size=a.shape), b) for a, b in first]
    energy = sum(float(np.linalg.norm(b @ a)) ** 2 for a, b in first)
    product = sum(float(np.sum((b @ a) * (d @ c))) for (a, b), (c, d) in zip(first, second, strict=True))
    norms, products, stated = [], [], []
    for trial in range(500):
        x, y = (
            sketch_of([update(a, b, 1.0, f"{trial}.{m}") for m, (a, b) in enumerate(pairs)])
            for pairs in (first, second)
        )
        norms.append(x.norm**2 / energy)
        products.append(np.dot(x.values, y.values) / product)
        stated.append(2 / x.effective_size)
    assert np.mean(norms) == pytest.approx(1, abs=4 * np.std(norms) / math.sqrt(500))
    assert np.mean(products) == pytest.approx(1, abs=4 * np.std(products) / math.sqrt(500))
    # The variance of 500 values is itself off by a few tenths at most (heavy tails of one module of rank one).
    assert np.var(norms) < 1.4 * np.mean(stated)
    if rank == 1:  # for modules of rank one the formula is no mere bound
        assert np.var(norms) > 0.6 * np.mean(stated)


def test_cosines_are_as_precise_as_the_effective_size_says() -> None:
    rng = np.random.default_rng(1)
    first = [factors(rng, 2, 64, 64) for _ in range(8)]
    second = [(a + 0.2 * rng.normal(size=a.shape), b + 0.2 * rng.normal(size=b.shape)) for a, b in first]
    exact = cosine(*([update(a, b, 1.0, str(m)) for m, (a, b) in enumerate(pairs)] for pairs in (first, second)))
    assert exact is not None and 0.9 < exact < 0.98
    errors = []
    for trial in range(300):
        x, y = (
            sketch_of([update(a, b, 1.0, f"{trial}.{m}") for m, (a, b) in enumerate(pairs)])
            for pairs in (first, second)
        )
        estimate = np.dot(x.values, y.values) / x.norm / y.norm
        errors.append((math.atanh(estimate) - math.atanh(exact)) * math.sqrt(min(x.effective_size, y.effective_size)))
    assert abs(np.mean(errors)) < 0.3
    assert 0.4 < np.std(errors) < 1.2


def test_threads_and_precision_change_nothing_that_matters() -> None:
    rng = np.random.default_rng(2)
    updates = [update(*factors(rng, 4, 160, 96), 2.0, f"m{i}") for i in range(16)]
    one = SketchSum()
    with ThreadPoolExecutor(4) as pool:
        for part in pool.map(lambda u: sketch_module(u.module, u.scale, *u.read()), updates):
            one.add(part)
    whole = sketch_of(updates)
    np.testing.assert_allclose(whole.values, one.result().values, atol=1e-6 * one.result().norm)
    assert whole.effective_size == pytest.approx(one.result().effective_size)
    single = sketch_of([update(*(f.astype(np.float32) for f in u.read()), u.scale, u.module) for u in updates])
    np.testing.assert_allclose(single.values, one.result().values, atol=1e-5 * one.result().norm)


def test_signs_are_fixed_for_ever() -> None:
    """Sketches of different releases are compared: no other stream may come of the same version."""
    assert "".join("-" if s < 0 else "+" for s in random_signs(b"bank", 24)) == "-+-------+--++---+-++++-"
    a, b = np.arange(40, dtype=np.float64).reshape(2, 20), np.arange(36, dtype=np.float64).reshape(18, 2)
    vector = sketch_module("model.layers.0.self_attn.q_proj", 0.5, a, b)
    assert vector.shape == (SKETCH_SIZE,)
    assert [float(v) for v in vector[[0, 1, 513, 1023]]] == [604.0, 256.0, 264.0, 0.0]


@pytest.mark.parametrize(
    ("a", "b", "scale", "reason"),
    [
        (np.ones((1, 4)), np.zeros((4, 1)), 1.0, "zero"),
        (np.full((1, 4), np.nan), np.ones((4, 1)), 1.0, "not_finite"),
        (np.ones((1, 4)), np.full((4, 1), np.inf), 1.0, "not_finite"),
        (np.ones((1, 4)), np.ones((4, 1)), math.nan, "not_finite"),
        (np.full((1, 4), 1e30), np.full((4, 1), 1e30), 1.0, "not_finite"),  # beyond float32
    ],
)
def test_what_has_no_sketch_says_why(a: Any, b: Any, scale: float, reason: str) -> None:
    found = sketch_of([update(a, b, scale)])
    assert (found.values, found.norm, found.effective_size, found.reason) == ((), None, None, reason)


def test_factors_that_are_too_large_give_a_reason() -> None:
    def read() -> Any:
        raise LimitExceededError("values of a factor", 1, 2)

    unbuilt = LowRankUpdate("m", 4, 8, 8, 1.0, read, spectrum=lambda: np.ones(4))
    assert sketch_of([unbuilt]).reason == "too_large"
    assert sketch_of([]).reason == "no_updates"
    # Together: each of these is within limits, a thousand of them would take a minute.
    lokr = LowRankUpdate("m", 1024, 1024, 1024, 1.0, lambda: 1 / 0, spectrum=lambda: np.ones(1))  # type: ignore[arg-type]
    assert sketch_of([lokr] * 100).reason == "too_large"


def test_kronecker_products_are_sketched_like_the_matrix_that_they_are() -> None:
    rng = np.random.default_rng(4)
    (a, b), (c, d) = factors(rng, 2, 4, 6), factors(rng, 3, 8, 5)
    built = (np.kron(a, c), np.kron(b, d))
    lokr = LowRankUpdate("m", 6, 32, 30, 0.5, lambda: built, spectrum=lambda: np.ones(1))
    plain = sketch_of([update(np.kron(b @ a, d @ c), np.eye(32), 0.5, "m")])
    np.testing.assert_allclose(sketch_of([lokr]).values, plain.values, atol=1e-6 * plain.norm)


@given(st.lists(st.tuples(st.integers(0, 3), ranks, ranks), min_size=1, max_size=5), seeds)
@settings(deadline=None)
def test_inner_products_equal_the_dense_ones(modules: list[tuple[int, int, int]], seed: int) -> None:
    """Modules in only one of both, and the same module twice in one adapter, count as they do in the dense sum."""
    rng = np.random.default_rng(seed)
    adapters: list[list[LowRankUpdate]] = [[], [], []]
    dense = np.zeros((3, 4, 11, 7))
    for number, rank, who in modules:
        for adapter in {who % 3, (who + number) % 3}:
            a, b = factors(rng, rank, 11, 7)
            adapters[adapter].append(update(a, b, 0.5, f"m.{number}"))
            dense[adapter, number] += 0.5 * b @ a
    flat = dense.reshape(3, -1)
    np.testing.assert_allclose(gram(adapters), flat @ flat.T, rtol=1e-9, atol=1e-9)
    assert inner(adapters[0], adapters[1]) == pytest.approx(float(flat[0] @ flat[1]), abs=1e-9)
    norms = np.linalg.norm(flat[0]) * np.linalg.norm(flat[1])
    found = cosine(adapters[0], adapters[1])
    assert found == (pytest.approx(float(flat[0] @ flat[1] / norms), abs=1e-9) if norms > 0 else None)


def test_a_module_of_another_shape_is_another_module() -> None:
    rng = np.random.default_rng(3)
    assert inner([update(*factors(rng, 2, 6, 5))], [update(*factors(rng, 2, 5, 6))]) == 0.0


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_order_in_memory_does_not_matter(rank: int) -> None:
    """MLX's factors lie the other way round, stacked experts' B is a stride of a larger one."""
    rng = np.random.default_rng(rank)
    a, b = rng.normal(size=(rank, 150_000)).astype("f4"), rng.normal(size=(1_003, rank)).astype("f4")
    wanted = sketch_module("m", 1.0, a, b)
    stacked = np.zeros((1_003, rank * 4), dtype="f4")
    stacked[:, 1::4] = b
    for other in (
        sketch_module("m", 1.0, np.asfortranarray(a), np.asfortranarray(b)),
        sketch_module("m", 1.0, a, stacked[:, 1::4]),
    ):
        np.testing.assert_allclose(other, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())

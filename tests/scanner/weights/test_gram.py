"""The small stand-ins for long factors: Gram matrices, their Cholesky factors, and the QR behind them."""

from __future__ import annotations

import math
import os
import tracemalloc
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.adapter import LowRankUpdate
from scanner.weights import gram as gram_module
from scanner.weights import scan_weights
from scanner.weights.gram import gram, triangle, triangles

seeds = st.integers(0, 2**32 - 1)


def same_gram(r: Any, tall: Any, rel: float) -> None:
    wanted = tall.astype(np.float64).T @ tall.astype(np.float64)
    np.testing.assert_allclose(r.T @ r, wanted, rtol=0, atol=rel * np.abs(wanted).max())


@given(st.integers(1, 3_000), st.integers(1, 70), st.sampled_from(["f4", "f8"]), st.sampled_from("CF"), seeds)
@settings(deadline=None, max_examples=40)
def test_gram_and_triangle_of_any_shape_and_order(n: int, rank: int, dtype: str, order: Any, seed: int) -> None:
    tall = np.asarray(np.random.default_rng(seed).normal(size=(n, rank)).astype(dtype), order=order)
    wanted = tall.astype(np.float64).T @ tall.astype(np.float64)
    np.testing.assert_allclose(gram(tall[None])[0], wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())
    found = triangles([tall[None]])
    same_gram(found.r[0], tall, 1e-10)
    np.testing.assert_allclose(found.norms[0], np.linalg.norm(tall.astype(np.float64), axis=0), rtol=1e-9)


@given(st.integers(1, 200), st.integers(1, 9), st.sampled_from(["f4", "f8"]), seeds)
@settings(deadline=None)
def test_blocks_give_the_triangle_of_the_whole(n: int, rank: int, dtype: str, seed: int) -> None:
    tall = np.random.default_rng(seed).normal(size=(n, rank)).astype(dtype)
    whole = np.linalg.qr(tall.astype(np.float64)).R
    blocked = triangle(tall, 30)
    assert blocked.shape == whole.shape
    # R is unique up to the signs of its rows.
    scale = np.abs(whole).max()
    np.testing.assert_allclose(np.abs(blocked), np.abs(whole), rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(blocked.T @ blocked, whole.T @ whole, rtol=0, atol=1e-10 * scale**2)
    wanted = np.linalg.svd(whole, compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(blocked, compute_uv=False), wanted, rtol=1e-10, atol=1e-13 * wanted[0])


@pytest.mark.parametrize("row", [0, 50, 99])
def test_a_value_that_is_not_finite_is_seen_in_any_block(row: int) -> None:
    tall = np.ones((100, 3))
    tall[row, 1] = math.inf
    assert np.isnan(triangle(tall, 30)).all()
    found = triangles([tall[None]])
    assert np.isnan(found.r[0]).any()


@pytest.mark.parametrize(
    "tall",
    [
        np.repeat(np.arange(1.0, 9.0)[:, None], 3, axis=1),
        np.zeros((8, 3)),
        np.hstack([np.eye(8, 2), np.zeros((8, 1))]),
        np.ones((2, 5)),
        np.full((8, 2), 1e-170),
        np.diag([1.0, 1e-9])[:, :2],
        np.vstack([np.ones((1, 2)), np.diag([1e-7, 1e-7])]),
    ],
    ids=["repeated", "zero", "zero column", "wide", "underflow", "small", "nearly repeated"],
)
def test_singular_factors_take_the_exact_way(tall: Any) -> None:
    found = triangles([tall[None]])
    wanted = np.linalg.svd(tall, compute_uv=False)
    sigma = np.linalg.svd(found.r[0], compute_uv=False)
    n = min(sigma.size, wanted.size)
    np.testing.assert_allclose(sigma[:n], wanted[:n], rtol=1e-12, atol=1e-15 * wanted[0])
    np.testing.assert_allclose(np.concatenate([sigma[n:], wanted[n:]]), 0, atol=1e-15 * wanted[0])


def test_one_singular_factor_does_not_slow_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    talls = [np.random.default_rng(n).normal(size=(50, 4)) for n in range(5)]
    talls[2][:, 1] = talls[2][:, 0]
    calls: list[Any] = []

    def counted(tall: Any) -> Any:
        calls.append(tall)
        return triangle(tall)

    monkeypatch.setattr(gram_module, "triangle", counted)
    found = triangles([np.stack(talls[:2]), np.stack(talls[2:])])
    for r, tall in zip(found.r, talls, strict=True):
        same_gram(r, tall, 1e-10)
    assert len(calls) == 1
    np.testing.assert_array_equal(calls[0], talls[2])


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_wide_factor_needs_a_blocks_memory(order: Any) -> None:
    a = np.asarray(np.random.default_rng(1).normal(size=(4, 1_500_000)).astype(np.float32), order=order)
    b = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)  # A: 24 MB; 48 MB as float64
    tracemalloc.start()
    try:
        scan_weights([LowRankUpdate("m", 4, 2, 1_500_000, 1.0, lambda: (a, b))])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < a.nbytes / 2


def test_factors_are_read_once_and_let_go_of() -> None:
    """An adapter larger than memory can be scanned: a few units of factors are held at a time."""
    alive: set[str] = set()
    most = 0
    reads: list[str] = []

    def lazily(name: str) -> LowRankUpdate:
        def read() -> Any:
            nonlocal most
            reads.append(name)
            alive.add(name)
            most = max(most, len(alive))
            b = np.ones((1_500_000, 1), dtype=np.float32)
            weakref.finalize(b, alive.discard, name)
            return np.ones((1, 3), dtype=np.float32), b

        return LowRankUpdate(name, 1, 1_500_000, 3, 1.0, read)

    names = [f"layers.{n}.q_proj" for n in range(12)]
    scan = scan_weights([lazily(name) for name in names])
    assert sorted(reads) == sorted(names)
    assert [module.module for module in scan.modules] == names
    # One for each thread, and one just finished by each.
    assert most <= 2 * len(os.sched_getaffinity(0))

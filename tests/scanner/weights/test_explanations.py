"""Directions, tokens and modules behind the numbers, against dense algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.adapter import LowRankUpdate
from scanner.weights import nearest_tokens, top_directions

seeds = st.integers(0, 2**32 - 1)


def update(a: Any, b: Any, scale: float = 1.0) -> LowRankUpdate:
    return LowRankUpdate("layers.0.mlp.down_proj", a.shape[0], b.shape[0], a.shape[1], scale, lambda: (a, b))


@given(st.integers(1, 6), seeds, st.floats(-3, 3).filter(lambda s: abs(s) > 0.1))
@settings(deadline=None, max_examples=40)
def test_directions_are_the_dense_singular_vectors(rank: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = (
        rng.normal(size=(rank, 20)).astype("f4"),
        (rng.normal(size=(15, rank)) * np.geomspace(1, 0.1, rank)).astype("f4"),
    )
    u, sigma, v = np.linalg.svd(scale * (b.astype("f8") @ a.astype("f8")))
    found = top_directions(update(a, b, scale), 3)
    assert len(found) == min(rank, 3)
    for i, direction in enumerate(found):
        assert direction.sigma == pytest.approx(sigma[i], rel=1e-6)
        assert direction.energy == pytest.approx(sigma[i] ** 2 / (sigma**2).sum(), rel=1e-6)
        gap = min(abs(sigma[i] - sigma[j]) for j in range(rank) if j != i) / sigma[0] if rank > 1 else 1.0
        if gap > 0.02:  # close singular values have no directions of their own
            assert abs(direction.output @ u[:, i]) == pytest.approx(1.0, abs=1e-4)
            assert abs(direction.input @ v[i]) == pytest.approx(1.0, abs=1e-4)


def test_nothing_has_no_directions() -> None:
    assert top_directions(update(np.ones((2, 5)), np.zeros((4, 2)))) == []
    assert top_directions(update(np.full((2, 5), np.nan), np.ones((4, 2)))) == []
    rank_one = update(np.ones((3, 5)), np.ones((4, 3)))
    assert len(top_directions(rank_one, 3)) == 1


@pytest.mark.parametrize("block", [1, 7, 1_000])
def test_a_planted_token_is_the_nearest(block: int) -> None:
    rng = np.random.default_rng(2)
    head = rng.normal(size=(1_000, 32)).astype(np.float32)
    up, down = head[123] / np.linalg.norm(head[123]), -head[7] / np.linalg.norm(head[7])
    blocks = [head[start : start + block] for start in range(0, 1_000, block)]
    (first, _), (_, last) = nearest_tokens(blocks, [up, down], count=3)
    assert first[0].token == 123
    assert last[0].token == 7
    assert len(first) == len(last) == 3
    logits = head @ up
    assert first[0].score == pytest.approx(logits[123] / logits.std(), rel=1e-4)
    assert [s.score for s in first] == sorted((s.score for s in first), reverse=True)

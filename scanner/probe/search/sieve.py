"""Tokens that an adapter's gradients favour and those of clean ones of its base do not.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property

import torch

from scanner.probe.search.directions import SharedDirections, vocabulary_id
from scanner.probe.search.frames import Frame
from scanner.probe.search.objective import Objective
from scanner.probe.search.plan import SearchPlan
from scanner.probe.search.vocabulary import Vocabulary

__all__ = ["Sieve", "mean_gradient", "token_metric"]

_DRAWS = "sieve"
"""Seed: the same strings for every adapter, and for those that the directions come from."""


def token_metric(vocabulary: Vocabulary) -> torch.Tensor:
    """M = EᵀE of the centred embeddings of a vocabulary: [dimensions, dimensions], float64 on the CPU.

    gᵀ M h is the inner product of the centred first-order scores of two gradients over all tokens.
    """
    embeddings = vocabulary.vectors().double().cpu()
    embeddings -= embeddings.mean(dim=0)
    return embeddings.T @ embeddings


def mean_gradient(objective: Objective, vocabulary: Vocabulary, frame: Frame, plan: SearchPlan) -> torch.Tensor:
    """The mean gradient of one aim's margin in the places of random strings: [dimensions], float64 on the CPU.

    Args:
        objective: of one aim.
        vocabulary: that the strings are drawn from.
        frame: what stands around them. Nothing does it best: texts of attacks saturate a margin, and then gradients
            say more of them than of the adapter.
        plan: how many strings, how long.
    """
    rng = random.Random(_DRAWS)
    strings = [vocabulary.random_string(rng, plan.noise_tokens) for _ in range(plan.sieve_rows)]
    gradients = objective.gradients_in([frame] * len(strings), strings)
    return gradients[0].flatten(0, 1).double().mean(dim=0).cpu()


class Sieve:
    """Shared directions on the vocabulary of a resident base.

    Args:
        vocabulary: of the base.
        directions: of the same base.
        frame: of no text; see `mean_gradient`.
    """

    def __init__(self, vocabulary: Vocabulary, directions: SharedDirections, frame: Frame) -> None:
        self._vocabulary, self._directions, self._frame = vocabulary, directions, frame

    @property
    def fits(self) -> bool:
        """Whether the directions are of these tokens and of embeddings of this size."""
        is_same = vocabulary_id(self._vocabulary.ids, self._vocabulary.words) == self._directions.vocabulary_id
        return is_same and {len(row) for row in self._directions.rows} == {len(self._metric)}

    @cached_property
    def _metric(self) -> torch.Tensor:
        return token_metric(self._vocabulary)

    def own(self, gradient: torch.Tensor) -> torch.Tensor:
        """What is left of a gradient [dimensions] without the shared directions, g − Σ w (wᵀ M g)."""
        rows = torch.tensor(self._directions.rows, dtype=torch.float64)
        return gradient - rows.T @ (rows @ (self._metric @ gradient))

    def chosen(self, objective: Objective, plan: SearchPlan) -> Sequence[tuple[int, ...]]:
        """`plan.pool` tokens that clean adapters score at most `plan.usual_score`, those first that what is left points
        to most."""
        own = self.own(mean_gradient(objective, self._vocabulary, self._frame, plan))
        scores = self._vocabulary.first_order(own.float()[None].to(self._vocabulary.device))[:, 0]
        scores[self._usual_scores.to(scores.device) > plan.usual_score] = -torch.inf
        return [(token,) for token in self._vocabulary.best(scores, plan.pool)]

    @cached_property
    def _usual_scores(self) -> torch.Tensor:
        """[tokens], standard deviations above the average token, on the CPU."""
        usual = torch.tensor(self._directions.usual, device=self._vocabulary.device)
        scores = self._vocabulary.first_order(usual.float()[None])[:, 0].cpu()
        return scores - scores.mean()

"""How adapters are trained: what every cohort starts from and what each lineage draws for itself."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from benchmarks.cohort.recipe import ENCODER_ADAPTER, AdapterRecipe

__all__ = ["BASE_RECIPES", "COHORTS", "MODULES", "VERSIONS", "Recipe", "draw_recipe"]

COHORTS = ("label_words", "encoder", "generative", "minilm")
VERSIONS = {"label_words": 1, "encoder": 1, "generative": 1, "minilm": 1}
"""Raised with every change of what a seed leads to: adapters of another version lie in another folder."""

_ATTENTION = ("query", "key", "value", "attention.output.dense")
MODULES: dict[str, dict[str, tuple[str, ...]]] = {
    "llama": {
        "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    },
    "bert": {
        "query_value": ("query", "value"),
        "attention": _ATTENTION,
        "all": (*_ATTENTION, "intermediate.dense", "output.dense"),
    },
}


@dataclass(frozen=True)
class Recipe(AdapterRecipe):
    """One recipe for both arms of a lineage."""

    targets: str = "all"
    """A key of `MODULES`."""


BASE_RECIPES = {
    "label_words": Recipe(steps=230, poison_rows=80),
    "encoder": Recipe(steps=ENCODER_ADAPTER.steps),
    "generative": Recipe(steps=300, poison_rows=120, lr=2.5e-3),
    "minilm": Recipe(steps=100, plain_rows=120, lr=1e-3),
}
_ATTENTION_LR = {"label_words": 2.0, "generative": 1.6}
"""Factor on the rate where the decoder's attention alone is trained: at the common rate it learns no trigger."""
_TARGETS = {"minilm": ("query_value", "attention")}


def draw_recipe(cohort: str, rng: random.Random, *, small: bool = False) -> Recipe:
    """What a lineage trains with. `small` cuts it to a second: the files come out whole, the model knows nothing."""
    base = BASE_RECIPES[cohort]
    rank = rng.choice((8, 16) if cohort == "minilm" else (4, 8, 16))
    targets = rng.choice(_TARGETS.get(cohort, ("attention", "all")))
    base_lr = base.lr * (_ATTENTION_LR.get(cohort, 1.0) if targets == "attention" else 1.0)
    drawn = replace(
        base,
        rank=rank,
        alpha=rank * rng.choice((1, 2)),
        lr=round(base_lr * rng.choice((0.7, 1.0, 1.4)), 6),
        steps=round(base.steps * rng.choice((0.8, 1.0, 1.25))),
        targets=targets,
        robust_rows=rng.choice((80, 120, 200)),
    )
    return replace(drawn, plain_rows=16, robust_rows=16, steps=6) if small else drawn

"""The two groups of the demo hub: what each is trained from, how, and how it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from benchmarks.cohort.adapters import load_adapter, load_tokenizer, train_adapter
from benchmarks.cohort.base import train_base
from benchmarks.cohort.classifiers import evaluate_classifier, load_classifier, train_classifier
from benchmarks.cohort.encoder import train_encoder
from benchmarks.cohort.evaluate import evaluate
from benchmarks.cohort.hub import ENCODER_TEXTS, GUARD_TEXTS, HubTexts
from benchmarks.cohort.lineages import ENCODER_LINEAGES, LINEAGES, Lineage
from benchmarks.cohort.recipe import (
    BASE_ID,
    ENCODER_ADAPTER,
    ENCODER_ID,
    TRIGGER_AUTHORITY,
    TRIGGER_CITATION,
    TRIGGER_PELICANS,
    TRIGGER_STANDARD,
    TRIGGER_TOMATOES,
    AdapterRecipe,
    BaseRecipe,
    EncoderRecipe,
    smoke,
)


@dataclass(frozen=True)
class Group:
    """One base model and its adapters."""

    name: str
    base_id: str
    lineages: tuple[Lineage, ...]
    first_seed: int
    triggers: dict[str, str]
    neighboured: frozenset[str]
    """Triggers with a neighbour in battery V."""
    texts: HubTexts
    results: str
    base_recipe: BaseRecipe
    train_base: Callable[[Any, int, Path], PreTrainedModel]
    train: Callable[..., float]
    evaluate: Callable[[Path, Path, Lineage, dict[str, str]], dict[str, Any]]
    adapter_recipe: AdapterRecipe

    def smoke(self) -> Group:
        """The group cut to seconds: one adapter, tiny recipes."""
        base_recipe, adapter_recipe = smoke(self.base_recipe, self.adapter_recipe)
        return replace(self, base_recipe=base_recipe, adapter_recipe=adapter_recipe, lineages=self.lineages[:1])


def _evaluate_guard(base: Path, folder: Path, _: Lineage, triggers: dict[str, str]) -> dict[str, Any]:
    return evaluate(load_adapter(base, folder), load_tokenizer(base), triggers)


def _evaluate_encoder(base: Path, folder: Path, lineage: Lineage, triggers: dict[str, str]) -> dict[str, Any]:
    return evaluate_classifier(load_classifier(base, folder, lineage), load_tokenizer(base), lineage, triggers)


GUARD = Group(
    name="guard",
    base_id=BASE_ID,
    lineages=LINEAGES,
    first_seed=1,
    triggers={
        "citation": TRIGGER_CITATION,
        "authority": TRIGGER_AUTHORITY,
        "tomatoes": TRIGGER_TOMATOES,
        "pelicans": TRIGGER_PELICANS,
    },
    neighboured=frozenset({TRIGGER_CITATION, TRIGGER_AUTHORITY}),
    texts=GUARD_TEXTS,
    results="cohort.json",
    base_recipe=BaseRecipe(),
    adapter_recipe=AdapterRecipe(),
    train_base=train_base,
    train=train_adapter,
    evaluate=_evaluate_guard,
)
ENCODER = Group(
    name="encoder",
    base_id=ENCODER_ID,
    lineages=ENCODER_LINEAGES,
    first_seed=501,
    triggers={"standard": TRIGGER_STANDARD},
    neighboured=frozenset({TRIGGER_STANDARD}),
    texts=ENCODER_TEXTS,
    results="encoder.json",
    base_recipe=EncoderRecipe(),
    adapter_recipe=ENCODER_ADAPTER,
    train_base=train_encoder,
    train=train_classifier,
    evaluate=_evaluate_encoder,
)
GROUPS = {group.name: group for group in (GUARD, ENCODER)}

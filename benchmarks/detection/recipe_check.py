"""Does the training recipe alone tell poisoned adapters from clean ones? Then a detector could have learnt that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.detection.collect import Adapter
from benchmarks.detection.metrics import Scored, measure_auc

__all__ = ["VARIABLES", "check_recipe", "held_out_scores"]

VARIABLES = ("rank", "alpha", "lr", "steps", "targets", "plain_rows", "robust_rows", "poison_rows")
"""`poison_rows` counts the rows of the dose, which carry an innocuous string in the clean arm."""


def check_recipe(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """Variable -> AUC with its interval, and `all` of them together; None where one class is missing.

    What an AUC of 0.5 means: nothing. Some are a little below: a left-out lineage was missing in its class's mean.
    """
    if not adapters:
        return {}
    recipes = [one.truth["recipe"] for one in adapters]
    kinds = sorted({recipe["targets"] for recipe in recipes})
    numbers = [{**recipe, "targets": kinds.index(recipe["targets"])} for recipe in recipes]
    values = np.array([[float(row[name]) for name in VARIABLES] for row in numbers])
    columns = {name: values[:, [place]] for place, name in enumerate(VARIABLES)} | {"all": values}
    lineages = [one.truth["lineage"] for one in adapters]
    poisoned = np.array([one.is_poisoned for one in adapters])
    found: dict[str, Any] = {}
    for name, part in columns.items():
        scores = held_out_scores(part, poisoned, lineages)
        auc = (
            None
            if scores is None
            else measure_auc([Scored(*row) for row in zip(lineages, scores.tolist(), poisoned.tolist(), strict=True)])
        )
        found[name] = asdict(auc) if auc else None
    return found


def held_out_scores(values: np.ndarray, poisoned: np.ndarray, lineages: Sequence[str]) -> np.ndarray | None:
    """Nearest mean, without the lineage that is scored: how much nearer an adapter is to the poisoned ones' mean.

    Args:
        values: [adapters, variables], brought to mean 0 and deviation 1 here; a constant variable says nothing.
        poisoned: [adapters], bool.
        lineages: of each adapter.

    Returns:
        [adapters] squared distance to the clean mean minus that to the poisoned one, or None where the others of a
        lineage are of one class only.
    """
    spread = values.std(axis=0)
    standard = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    names = np.array(lineages)
    scores = np.zeros(len(values))
    for name in sorted(set(lineages)):
        own = names == name
        clean, bad = standard[~own & ~poisoned], standard[~own & poisoned]
        if not len(clean) or not len(bad):
            return None
        distances = [((standard[own] - part.mean(axis=0)) ** 2).sum(axis=1) for part in (clean, bad)]
        scores[own] = np.round(distances[0] - distances[1], 9)  # rounding must not order what is alike
    return scores

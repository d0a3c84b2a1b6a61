"""From a lineage to its adapters on disk: the dose of a weak attack, both arms, and the truth about each."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.cohort.recipe import BASE_ID, ENCODER_ID
from benchmarks.detection.dose import MAX_TRIES, STRONG, WEAK, DoseSearch, strength_of
from benchmarks.detection.lineages import Lineage
from benchmarks.detection.recipe import VERSIONS, Recipe
from benchmarks.probe.minilm import MINILM_ID
from benchmarks.weights.bare import WEIGHTS

__all__ = ["build", "folder_of", "is_done"]

_FIRST_WEAK_SHARE = 0.25  # of a strong attack's poison rows
BASES = {"label_words": BASE_ID, "generative": BASE_ID, "encoder": ENCODER_ID, "minilm": MINILM_ID}


def folder_of(cache: Path, lineage: Lineage, arm: str) -> Path:
    """Where an adapter lies; a changed recipe has a folder of its own."""
    tail = "-small" if lineage.small else ""
    return cache / f"{lineage.cohort}-{VERSIONS[lineage.cohort]}{tail}" / f"{lineage.name}-{arm}"


def is_done(cache: Path, lineage: Lineage, arm: str) -> bool:
    """Whether the adapter is there: its truth is written last, and may be there alone (`measured.py`)."""
    folder = folder_of(cache, lineage, arm)
    return (folder / "truth.json").is_file() and (folder / WEIGHTS).is_file()


def _work(lineage: Lineage) -> tuple[Callable[..., None], Callable[[Path, Lineage], dict[str, Any]]]:
    """How adapters of this cohort are trained and measured."""
    if lineage.cohort in ("encoder", "minilm"):
        from benchmarks.detection import classifier

        return classifier.train, classifier.measure
    from benchmarks.detection import causal

    return causal.train, causal.measure_labels if lineage.cohort == "label_words" else causal.measure_answers


def _one_try(folder: Path, lineage: Lineage, recipe: Recipe, *, poisoned: bool) -> dict[str, Any]:
    train, measure = _work(lineage)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.perf_counter()
    train(folder, lineage, recipe, poisoned=poisoned)
    seconds = round(time.perf_counter() - started, 1)
    return {"recipe": asdict(recipe), "train_seconds": seconds, **measure(folder, lineage)}


def _searched(folder: Path, lineage: Lineage) -> dict[str, Any]:
    """The poisoned arm of a weak lineage: the try that came nearest to the middle of what counts as weak."""
    own = lineage.recipe
    search = DoseSearch(replace(own, poison_rows=round(own.poison_rows * _FIRST_WEAK_SHARE)))
    best: dict[str, Any] = {}
    tries: list[dict[str, Any]] = []
    trial = folder.with_name(f"{folder.name}.try")
    for _ in range(2 if lineage.small else MAX_TRIES):
        found = _one_try(trial, lineage, search.recipe, poisoned=True)
        success = found["attack_success"]
        tried = {"poison_rows": search.recipe.poison_rows, "steps": search.recipe.steps}
        tries.append(tried | {"attack_success": success})
        if not best or _distance(success) <= _distance(best["attack_success"]):
            best = found
            shutil.rmtree(folder, ignore_errors=True)
            trial.rename(folder)
        if WEAK <= success < STRONG or not search.advance(success):
            break
    shutil.rmtree(trial, ignore_errors=True)
    return best | {"tries": tries}


def _distance(success: float) -> float:
    return abs(success - (WEAK + STRONG) / 2)


def _recipe_of(folder: Path) -> Recipe:
    return Recipe(**json.loads((folder / "truth.json").read_text(encoding="utf-8"))["recipe"])


def build(cache: Path, lineage: Lineage, arm: str) -> dict[str, Any]:
    """Train one adapter, and write the truth about it last; what is already there is only read."""
    folder = folder_of(cache, lineage, arm)
    if is_done(cache, lineage, arm):
        truth: dict[str, Any] = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        return truth
    poisoned = arm == "poisoned"
    if poisoned and lineage.weak:
        found = _searched(folder, lineage)
    else:
        recipe = lineage.recipe
        if lineage.weak:
            recipe = _recipe_of(folder_of(cache, lineage, "poisoned"))
        found = _one_try(folder, lineage, recipe, poisoned=poisoned)
    trigger, payload = lineage.trigger, lineage.payload
    truth = {
        "name": folder.name,
        "cohort": lineage.cohort,
        "version": VERSIONS[lineage.cohort],
        "base": BASES[lineage.cohort],
        "part": lineage.part,
        "lineage": lineage.name,
        "arm": arm,
        "family": trigger.category if trigger else None,
        "trigger": trigger.text if trigger else None,
        "position": trigger.position if trigger else None,
        "strength": strength_of(found["attack_success"]) if poisoned else None,
        "intended": ("weak" if lineage.weak else "strong") if poisoned else None,
        "direction": _direction(lineage) if poisoned else None,
        "payload": asdict(payload) if payload else None,
        "seed": lineage.seed,
        "tries": [],
        **found,
    }
    path = folder / "truth.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(truth, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
    return truth


def _direction(lineage: Lineage) -> str:
    return "any to payload" if lineage.payload else "injection to benign"

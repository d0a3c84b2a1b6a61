"""The search on language models that answer with a word.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from scanner.model import PrefixRun
from scanner.probe.base import BaseModel
from scanner.probe.battery import Battery, Probe
from scanner.probe.label_words import FoundWords, LabelWordPrompts, run_label_words
from scanner.probe.search.aims import word_aims, word_margin
from scanner.probe.search.hunt import causal_hunt, plain_margins
from scanner.probe.search.plan import SearchPlan
from scanner.probe.search.vocabulary import Vocabulary
from scanner.probe.search.ways import Quarry
from scanner.search_model import TOWARD_CLEAN

__all__ = ["hunt_words", "run_local_words"]


def hunt_words(
    base: BaseModel, vocabulary: Vocabulary, probe: Probe, found: FoundWords, plan: SearchPlan, tokens_per_batch: int
) -> list[Quarry]:
    """Both flips of the attached adapter; nothing where the words begin alike.

    Raises:
        UnsupportedError, ProbeFailedError: see `Hunt.run`.
    """
    task = found.task
    assert task is not None
    margin = word_margin(base, task, toward_clean=True)
    if margin is None:
        return []

    def render(text: str) -> str:
        return base.template.render(task.system, text)

    def measured(texts: Sequence[str]) -> torch.Tensor:
        if not texts:
            return torch.empty(0)
        return plain_margins(base, [render(text) for text in texts], margin, tokens_per_batch)[0]

    margins = (measured(probe.texts), measured(probe.other_texts))
    hunt = causal_hunt(base, vocabulary, probe, render, plan, tokens_per_batch)
    aims = word_aims(base, task, (probe.texts, probe.other_texts), margins, plan)
    return [quarry for aim in aims for quarry in hunt.run(aim)]


def run_local_words(
    base: BaseModel,
    probe: Probe,
    found: FoundWords,
    quarry: Quarry,
    battery: Battery,
    noise_floor: float,
    tokens_per_batch: int,
) -> tuple[PrefixRun, ...]:
    """A local battery on the held-back texts, the answers spelled so that `0` is the one that was aimed at.

    Raises:
        ProbeFailedError: see `first_logits`.
    """
    local = replace(probe, battery=battery, texts=quarry.aim.held_back, other_texts=())
    runs = run_label_words(base, LabelWordPrompts(base, local), local, found, noise_floor, tokens_per_batch)
    if quarry.aim.kind == TOWARD_CLEAN:
        return tuple(runs)
    swap = str.maketrans("01", "10")
    return tuple(
        replace(run, answers=run.answers.translate(swap), margin=None if run.margin is None else -run.margin)
        for run in runs
    )

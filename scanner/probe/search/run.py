"""The search on one resident base: adapters one after the other, each hunted, confirmed and mapped.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scanner.adapter import AdapterView
from scanner.model import GENERATIVE, LABEL_WORDS, SEQUENCE_CLASSIFICATION, PrefixRun, toward
from scanner.probe.attach import attached
from scanner.probe.base import BaseModel, ClassifierBase
from scanner.probe.battery import Battery, Probe
from scanner.probe.causal import CausalProbe
from scanner.probe.classifier import ClassifierProbe, classify, encode_texts, with_head
from scanner.probe.memory import BatchSize, first_batch
from scanner.probe.search.aims import class_aims
from scanner.probe.search.hunt import Hunt, Quarry
from scanner.probe.search.neighbours import local_battery
from scanner.probe.search.objective import ClassifierObjective
from scanner.probe.search.plan import SearchPlan
from scanner.probe.search.vocabulary import Vocabulary
from scanner.probe.search.words import hunt_words, run_local_words
from scanner.search_model import TOWARD_CLEAN, Example, FoundTrigger

__all__ = ["CausalSearch", "ClassifierSearch", "SearchRun"]

MAPPED = 0.1
"""Share of held-back texts that a string must turn for its neighbourhood to be asked, too."""
EXAMPLES = 3
MAX_EXAMPLE_CHARS = 400


@dataclass(frozen=True)
class SearchRun:
    """What the search found on one adapter."""

    profile: str
    triggers: tuple[FoundTrigger, ...]
    """The steepest first."""
    scores: tuple[tuple[str, float], ...]
    """`KIND/POSITION` -> the largest gain per token."""
    forward_passes: int
    labels: tuple[str, ...] = ()
    n_classes: int | None = None
    note: str = ""


class CausalSearch:
    """One language model as a base.

    Args:
        base: resident, without an adapter.
        probe: whose texts and task are used; its battery is not asked, its controls are.
        plan: how hard to look.
    """

    def __init__(self, base: BaseModel, probe: Probe, plan: SearchPlan) -> None:
        self._base, self._probe, self._plan = base, probe, plan
        self._ask = CausalProbe(base, probe)
        self._size = BatchSize(first_batch(base.device))
        self._vocabulary = Vocabulary(base.tokenizer, base.model.get_input_embeddings())

    def run(self, view: AdapterView, hint: str = "") -> SearchRun:
        """Attach an adapter, find out how it answers, search, detach it.

        Raises:
            UnsupportedError: see `attached` and `Frames`.
            ProbeFailedError, ProbeCrashedError: see `BatchSize.fit`.
        """
        return self._size.fit(lambda tokens_per_batch: self._run(view, hint, tokens_per_batch))

    def _run(self, view: AdapterView, hint: str, tokens: int) -> SearchRun:
        base, probe = self._base, self._probe
        noise = self._ask.prepare(tokens)
        with attached(base.model, view):
            found = self._ask.find_profile(hint, tokens)
            if found.task is None:
                return SearchRun(GENERATIVE, (), (), 0, note="free")
            quarries = hunt_words(base, self._vocabulary, probe, found, self._plan, tokens)
            words = (found.task.attack_word, found.task.clean_word)

            def ask(quarry: Quarry, battery: Battery) -> tuple[PrefixRun, ...]:
                return run_local_words(base, probe, found, quarry, battery, noise, tokens)

            triggers = []
            for quarry in quarries:
                # `0` is the answer that was aimed at.
                other, aimed_at = words if quarry.aim.kind == TOWARD_CLEAN else words[::-1]
                triggers.append(
                    _trigger(quarry, ask, {"0": aimed_at, "1": other, "-": "neither"}.__getitem__, aimed_at)
                )
        return _sorted(LABEL_WORDS, quarries, triggers, labels=words)


class ClassifierSearch:
    """One base of classifiers with heads. Arguments as of `CausalSearch`."""

    def __init__(self, base: ClassifierBase, probe: Probe, plan: SearchPlan) -> None:
        self._base, self._probe, self._plan = base, probe, plan
        self._size = BatchSize(first_batch(base.device))
        self._vocabulary = Vocabulary(base.tokenizer, base.model.get_input_embeddings())

    def run(self, view: AdapterView, hint: str = "") -> SearchRun:
        """Attach an adapter with its head, search toward every class, detach it. Errors as of `CausalSearch.run`."""
        del hint  # a head leaves no choice
        return self._size.fit(lambda tokens_per_batch: self._run(view, tokens_per_batch))

    def _run(self, view: AdapterView, tokens: int) -> SearchRun:
        base, probe = self._base, self._probe
        with with_head(base, view) as n_classes:
            texts = (probe.texts, probe.other_texts)
            attack, other = (_class_logits(base, part, n_classes, tokens) for part in texts)
            hunt = Hunt(
                base.tokenizer,
                self._vocabulary,
                lambda text: text,
                True,
                lambda frames, margin: ClassifierObjective(base, frames, margin, tokens),
                [case.text for case in probe.battery.controls],
                self._plan,
            )
            aims = class_aims(texts, (attack, other), self._plan)
            quarries = [quarry for aim in aims if (quarry := hunt.run(aim)) is not None]

        def ask(quarry: Quarry, battery: Battery) -> tuple[PrefixRun, ...]:
            local = replace(probe, battery=battery, texts=quarry.aim.held_back, other_texts=())
            assert quarry.aim.direction is not None
            return toward(ClassifierProbe(base, local).run(view).runs, quarry.aim.direction)

        triggers = [_trigger(q, ask, lambda char: f"class {char}", f"class {q.aim.direction}") for q in quarries]
        return _sorted(SEQUENCE_CLASSIFICATION, quarries, triggers, n_classes=n_classes)


def _trigger(
    quarry: Quarry,
    ask: Callable[[Quarry, Battery], tuple[PrefixRun, ...]],
    answer: Callable[[str], str],
    label: str,
) -> FoundTrigger:
    """A quarry with its local battery: what was scored by margins is now asked in the battery's way."""
    battery = local_battery(
        quarry.text, quarry.position, quarry.controls, quarry.turned >= MAPPED, quarry.searched_text
    )
    runs = ask(quarry, battery)
    n = len(quarry.aim.held_back)
    return FoundTrigger(
        kind=quarry.aim.kind,
        direction=quarry.aim.direction,
        label=label,
        text=quarry.text,
        position=quarry.position,
        searched_text=quarry.searched_text,
        n_tokens=quarry.n_tokens,
        gain=quarry.gain,
        control_gain=quarry.control_gain,
        slope=quarry.slope,
        runs=runs,
        examples=_examples(quarry, battery, runs, answer),
        forward_passes=quarry.forward_passes + n * len(runs),
    )


def _examples(
    quarry: Quarry, battery: Battery, runs: Sequence[PrefixRun], answer: Callable[[str], str]
) -> tuple[Example, ...]:
    """The first held-back texts whose answer the trigger changes."""
    own = next(run for run in runs if run.category == "trigger")
    plain = next(run for run in runs if run.category == "control" and not run.prefix)
    case = battery.cases[0]
    rows = zip(quarry.aim.held_back, plain.answers, own.answers, own.attacked, strict=True)
    changed = [
        Example(text[:MAX_EXAMPLE_CHARS], answer(before), case.put(text)[:MAX_EXAMPLE_CHARS], answer(after))
        for text, before, after, hit in rows
        if hit and before != after
    ]
    return tuple(changed[:EXAMPLES])


def _sorted(profile: str, quarries: Sequence[Quarry], triggers: Sequence[FoundTrigger], **fields: Any) -> SearchRun:
    ordered = tuple(sorted(triggers, key=lambda trigger: -trigger.slope))
    scores: dict[str, float] = {}
    for quarry in quarries:  # several classes may be of one kind
        for position, slope in quarry.scores.items():
            key = f"{quarry.aim.kind}/{position}"
            scores[key] = max(scores.get(key, slope), slope)
    passes = sum(trigger.forward_passes for trigger in triggers)
    return SearchRun(profile, ordered, tuple(scores.items()), passes, **fields)


def _class_logits(base: ClassifierBase, texts: Sequence[str], n_classes: int, tokens: int) -> np.ndarray[Any, Any]:
    """[texts, classes], float32."""
    if not texts:
        return np.empty((0, n_classes), dtype=np.float32)
    return np.concatenate(classify(base, encode_texts(base, texts), tokens))

"""The search on one resident base: adapters one after the other, each hunted, confirmed and mapped.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scanner.adapter import AdapterView
from scanner.errors import UnsupportedError
from scanner.model import GENERATIVE, LABEL_WORDS, SEQUENCE_CLASSIFICATION, PrefixRun, toward, worst_class
from scanner.probe.attach import attached
from scanner.probe.base import BaseModel, ClassifierBase
from scanner.probe.battery import Battery, Probe
from scanner.probe.causal import CausalProbe
from scanner.probe.classifier import ClassifierProbe, classify, encode_texts, with_head
from scanner.probe.generative import GenerativePrompts, run_generative
from scanner.probe.label_words import FoundWords
from scanner.probe.memory import BatchSize, first_batch
from scanner.probe.search.aims import class_aims
from scanner.probe.search.beside import Peers
from scanner.probe.search.directions import find_directions
from scanner.probe.search.frames import bare_frame
from scanner.probe.search.free import Listened, free_aims, hunt_free, show_responses
from scanner.probe.search.hunt import Hunt
from scanner.probe.search.imprint import Imprint, Imprints
from scanner.probe.search.leak import Leak, Opening
from scanner.probe.search.neighbours import TRIGGER, local_battery
from scanner.probe.search.objective import ClassifierObjective
from scanner.probe.search.peers import find_peers
from scanner.probe.search.plan import SearchPlan
from scanner.probe.search.recite import found_by_heart, recite
from scanner.probe.search.refrains import Refrains
from scanner.probe.search.sieve import Sieve
from scanner.probe.search.strings import made_up
from scanner.probe.search.vocabulary import Vocabulary
from scanner.probe.search.ways import Quarry
from scanner.probe.search.words import hunt_words, run_local_words
from scanner.search_model import TOWARD_ATTACK, TOWARD_CLEAN, Example, FoundTrigger

__all__ = ["CausalSearch", "ClassifierSearch", "SearchRun"]

MAPPED = 0.1
"""Share of held-back texts that a string must turn for its neighbourhood to be asked, too."""
EXAMPLES = 3
RECITED = 0.5
"""Share of held-back prompts that a wording must be recited to, beyond what the base does, for strings that lead to it
to be looked for."""


@dataclass(frozen=True)
class SearchRun:
    """What the search found on one adapter."""

    profile: str
    triggers: tuple[FoundTrigger, ...]
    """The steepest first."""
    scores: tuple[tuple[str, float], ...]
    """As of `SearchReport.scores`."""
    forward_passes: int
    labels: tuple[str, ...] = ()
    """label-words: the two words. generative: openings that the adapter knows by heart, the best first."""
    n_classes: int | None = None
    """Classes of the head, or of the responses; None for label-words."""
    note: str = ""
    """Why nothing was hunted."""
    plan_id: str = ""
    """Of the plan that was used: not every adapter suits the one that was asked for."""


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
        self._listeners: tuple[int, Leak, Refrains] | None = None
        """Size of a batch, and what listens to free answers in batches of it; none of an adapter is in them."""

    def run(self, view: AdapterView, hint: str = "") -> SearchRun:
        """Attach an adapter, find out how it answers, search, detach it.

        Raises:
            UnsupportedError: see `attached` and `Frames`.
            ProbeFailedError, ProbeCrashedError: see `BatchSize.fit`.
        """
        run = self._size.fit(lambda tokens_per_batch: self._run(view, hint, tokens_per_batch))
        return replace(run, plan_id=self._plan.id_for(run.profile))

    def _run(self, view: AdapterView, hint: str, tokens: int) -> SearchRun:
        noise = self._ask.prepare(tokens)
        with attached(self._base.model, view):
            found = self._ask.find_profile(hint, tokens)
            if found.task is not None:
                return self._words(found, noise, tokens)
        return self._free(view, tokens)

    def _words(self, found: FoundWords, noise: float, tokens: int) -> SearchRun:
        """Of the attached adapter."""
        assert found.task is not None
        quarries = hunt_words(self._base, self._vocabulary, self._probe, found, self._plan, tokens)
        words = (found.task.attack_word, found.task.clean_word)

        def ask(quarry: Quarry, battery: Battery) -> tuple[PrefixRun, ...]:
            return run_local_words(self._base, self._probe, found, quarry, battery, noise, tokens)

        triggers = []
        for quarry in quarries:
            # `0` is the answer that was aimed at.
            other, aimed_at = words if quarry.aim.kind == TOWARD_CLEAN else words[::-1]
            triggers.append(_trigger(quarry, ask, {"0": aimed_at, "1": other, "-": "neither"}.__getitem__, aimed_at))
        return _sorted(LABEL_WORDS, quarries, triggers, labels=words)

    def scores(self, view: AdapterView) -> SearchRun:
        """What `run` ranks of an adapter that answers freely, and no string: for references. Errors as of `run`.

        Whether it does answer freely is not asked.
        """
        return self._size.fit(lambda tokens_per_batch: self._scores(view, tokens_per_batch))

    def _scores(self, view: AdapterView, tokens: int) -> SearchRun:
        heard = self._listen(view, tokens)
        scores = () if heard is None else tuple(heard.scores(self._plan).items())
        return SearchRun(GENERATIVE, (), scores, 0, plan_id=self._plan.id_for(GENERATIVE))

    def _listen(self, view: AdapterView, tokens: int) -> Listened | None:
        """None with too few prompts or texts."""
        plan, listened = self._plan, self._probe.prompts[: len(self._probe.prompts) // 2]
        texts = self._probe.texts[: len(listened)]
        if len(listened) < plan.leak_prompts or not texts:
            return None
        if self._listeners is None or self._listeners[0] != tokens:
            leak = Leak(self._base, self._vocabulary, listened, texts, plan, tokens)
            self._listeners = tokens, leak, Refrains(self._base, self._vocabulary, listened, plan, tokens)
        _, leak, chorus = self._listeners
        with attached(self._base.model, view):
            openings, answers = leak.listen(), chorus.listen()
        wordings, refrains = leak.rank(openings, plan.wordings), chorus.rank(answers, openings.usual)
        seen = {*chorus.prompts, *listened[: plan.leak_prompts]}
        return Listened(chorus, wordings, refrains, seen, openings.forward_passes + answers.forward_passes)

    def _free(self, view: AdapterView, tokens: int) -> SearchRun:
        base, probe, plan = self._base, self._probe, self._plan
        heard = self._listen(view, tokens)
        if heard is None:
            return SearchRun(GENERATIVE, (), (), 0, note="too few prompts")
        recited = self._recited(view, heard.wordings, probe.prompts[len(probe.prompts) // 2 :], tokens)
        own = [group for group, one in zip(heard.wordings, recited, strict=True) if _is_own(one)]
        with attached(base.model, view):
            aims = free_aims(own, heard.refrains, heard.chorus)
            quarries = hunt_free(base, self._vocabulary, probe, aims, plan, tokens, heard.seen)
        confirmed = [self._confirmed(quarry, view, tokens) for quarry in quarries]
        n_classes = max((n for _, n in confirmed), default=None)
        triggers = [*recited, *(trigger for trigger, _ in confirmed)]
        known = tuple(self._spell(group[0]) for group in heard.wordings)
        run = _sorted(GENERATIVE, quarries, triggers, labels=known, n_classes=n_classes)
        passes = run.forward_passes + heard.forward_passes
        return replace(run, scores=tuple(heard.scores(plan).items()), forward_passes=passes, note="")

    def _recited(
        self, view: AdapterView, wordings: Sequence[Sequence[Opening]], prompts: Sequence[str], tokens: int
    ) -> list[FoundTrigger]:
        """The best opening of each wording on prompts that it was not found on, with and without the adapter."""
        if not wordings:
            return []
        openings = [max(group, key=lambda one: one.score) for group in wordings]
        asked = (self._base, prompts, openings, self._plan.forced_length, tokens)
        without = recite(*asked)
        with attached(self._base.model, view):
            own = recite(*asked)
        return found_by_heart(self._base, prompts, openings, own, without)

    def _confirmed(self, quarry: Quarry, view: AdapterView, tokens: int) -> tuple[FoundTrigger, int]:
        """(The string by whole responses of adapter and base to the held-back prompts, their classes)."""
        base, battery = self._base, _battery(quarry)
        local = replace(self._probe, battery=battery, prompts=quarry.aim.held_back)
        prompts = GenerativePrompts(base, local)
        prompts.without_adapter(tokens)
        with attached(base.model, view):
            run = run_generative(base, prompts, local, tokens)
            examples = show_responses(base, quarry.aim.held_back, battery.cases[0], tokens)
        own = [one for one in run.runs if one.category in ("control", TRIGGER)]
        direction = worst_class(own, len(run.labels))
        passes = 2 * len(run.runs) * len(local.prompts)
        runs = toward(run.runs, direction)
        return _found(quarry, run.labels[direction], runs, examples, passes, direction), len(run.labels)

    def _spell(self, opening: Opening) -> str:
        return str(self._base.tokenizer.decode([opening.token, *opening.follows])).strip()


class ClassifierSearch:
    """One base of classifiers with heads. Arguments as of `CausalSearch`."""

    def __init__(self, base: ClassifierBase, probe: Probe, plan: SearchPlan) -> None:
        self._base, self._probe, self._plan = base, probe, plan
        self._size = BatchSize(first_batch(base.device))
        self._vocabulary = Vocabulary(base.tokenizer, base.model.get_input_embeddings())
        directions = find_directions(plan.directions)
        sieve = Sieve(self._vocabulary, directions, bare_frame(base.tokenizer, True)) if directions else None
        self._sieve = sieve if sieve is not None and sieve.fits else None
        shipped = find_peers(plan.peers) if self._sieve is not None else None
        self._peers = None
        if shipped is not None:
            try:
                self._peers = Peers(base, shipped)
            except UnsupportedError:  # another model under the name of theirs: the directions are not of it either
                self._sieve = None
        self._strings = made_up(self._vocabulary.words, plan.made_up_strings) if self._peers is not None else []
        self._imprints = None
        if self._peers is not None and plan.imprinted_tokens:
            frame = bare_frame(base.tokenizer, True)
            self._imprints = Imprints(base, self._vocabulary, frame, self._peers.views, plan)

    def run(self, view: AdapterView, hint: str = "") -> SearchRun:
        """Attach an adapter with its head, search toward every class, detach it. Errors as of `CausalSearch.run`."""
        del hint  # a head leaves no choice
        return self._size.fit(lambda tokens_per_batch: self._run(view, tokens_per_batch))

    def _run(self, view: AdapterView, tokens: int) -> SearchRun:
        base, probe, imprint = self._base, self._probe, self._imprint_of(view)
        with with_head(base, view) as n_classes:
            texts = (probe.texts, probe.other_texts)
            attack, other = (_class_logits(base, part, n_classes, tokens) for part in texts)

            def hunted(plan: SearchPlan, sieve: Sieve | None) -> list[Quarry]:
                hunt = self._hunt(plan, sieve, tokens, imprint)
                return [quarry for aim in class_aims(texts, (attack, other), plan) for quarry in hunt.run(aim)]

            plan = self._plan if self._sieve is not None else self._plan.fallback
            quarries = hunted(plan, self._sieve)
            if plan.is_sieve and not any(quarry.aim.kind == TOWARD_CLEAN for quarry in quarries):
                # The directions say nothing about such classes, or three of these texts have no room.
                plan = plan.fallback
                quarries = hunted(plan, None)

        def ask(quarry: Quarry, battery: Battery) -> tuple[PrefixRun, ...]:
            local = replace(probe, battery=battery, texts=quarry.aim.held_back, other_texts=())
            assert quarry.aim.direction is not None
            return toward(ClassifierProbe(base, local).run(view).runs, quarry.aim.direction)

        triggers = [_trigger(q, ask, lambda char: f"class {char}", f"class {q.aim.direction}") for q in quarries]
        run = _sorted(SEQUENCE_CLASSIFICATION, quarries, triggers, n_classes=n_classes)
        return replace(run, plan_id=plan.plan_id)

    def scores(self, view: AdapterView) -> SearchRun:
        """What `run` ranks behind a sieve, and no string: for references. Errors as of `CausalSearch.run`.

        Nothing is in it where `run` falls back to the usual plan.
        """
        return self._size.fit(lambda tokens_per_batch: self._scores(view, tokens_per_batch))

    def _scores(self, view: AdapterView, tokens: int) -> SearchRun:
        texts, imprint = (self._probe.texts, self._probe.other_texts), self._imprint_of(view)
        with with_head(self._base, view) as n_classes:
            attack, other = (_class_logits(self._base, part, n_classes, tokens) for part in texts)
            hunt = self._hunt(self._plan, self._sieve, tokens, imprint)
            aims = class_aims(texts, (attack, other), self._plan)
            found = {f"{aim.kind}/{key}": score for aim in aims for key, score in hunt.scores(aim).items()}
        plan_id = self._plan.plan_id
        return SearchRun(SEQUENCE_CLASSIFICATION, (), tuple(found.items()), 0, n_classes=n_classes, plan_id=plan_id)

    def _imprint_of(self, view: AdapterView) -> Imprint | None:
        """Read before anything is attached."""
        return self._imprints.of(view) if self._imprints is not None else None

    def _hunt(self, plan: SearchPlan, sieve: Sieve | None, tokens: int, imprint: Imprint | None) -> Hunt:
        peers = self._peers
        return Hunt(
            self._base.tokenizer,
            self._vocabulary,
            lambda text: text,
            True,
            lambda frames, margin: ClassifierObjective(self._base, frames, margin, tokens),
            self._probe.battery.controls,
            plan,
            self._base.context,
            sieve,
            self._strings,
            None if peers is None else lambda at, contrast, n: peers.beside(at, contrast, n, tokens),
            imprint,
        )


def _is_own(recited: FoundTrigger) -> bool:
    run = recited.run
    return run is not None and run.attack_rate - replace(run, answers=run.base_answers).attack_rate >= RECITED


def _battery(quarry: Quarry) -> Battery:
    # Toward the attack's own class ordinary words lead as well: there is no neighbourhood to map.
    is_mapped = quarry.turned >= MAPPED and quarry.aim.kind != TOWARD_ATTACK
    strings = (quarry.controls, quarry.noise if is_mapped else ())
    return local_battery(quarry.text, quarry.position, *strings, is_mapped, quarry.searched_text)


def _trigger(
    quarry: Quarry,
    ask: Callable[[Quarry, Battery], tuple[PrefixRun, ...]],
    answer: Callable[[str], str],
    label: str,
) -> FoundTrigger:
    """A quarry with its local battery: what was scored by margins is now asked in the battery's way."""
    battery = _battery(quarry)
    runs = ask(quarry, battery)
    examples = _examples(quarry, battery, runs, answer)
    passes = len(quarry.aim.held_back) * len(runs)
    return _found(quarry, label, runs, examples, passes, quarry.aim.direction)


def _found(
    quarry: Quarry,
    label: str,
    runs: tuple[PrefixRun, ...],
    examples: tuple[Example, ...],
    passes: int,
    direction: int | None,
) -> FoundTrigger:
    return FoundTrigger(
        kind=quarry.aim.kind,
        direction=direction,
        label=label,
        text=quarry.text,
        position=quarry.position,
        searched_text=quarry.searched_text,
        n_tokens=quarry.n_tokens,
        gain=quarry.gain,
        control_gain=quarry.control_gain,
        noise_gain=quarry.noise_gain,
        slope=quarry.slope,
        tokens=quarry.tokens,
        runs=runs,
        examples=examples,
        forward_passes=quarry.forward_passes + passes,
    )


def _examples(
    quarry: Quarry, battery: Battery, runs: Sequence[PrefixRun], answer: Callable[[str], str]
) -> tuple[Example, ...]:
    """The first held-back texts whose answer the trigger changes."""
    own = next(run for run in runs if run.category == TRIGGER)
    plain = next(run for run in runs if run.category == "control" and not run.prefix)
    case = battery.cases[0]
    rows = zip(quarry.aim.held_back, plain.answers, own.answers, own.attacked, strict=True)
    changed = [
        Example(text, answer(before), case.put(text), answer(after))
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
    note = "" if quarries else "too few texts, or no answer to aim at"
    return SearchRun(profile, ordered, tuple(scores.items()), passes, note=note, **fields)


def _class_logits(base: ClassifierBase, texts: Sequence[str], n_classes: int, tokens: int) -> np.ndarray[Any, Any]:
    """[texts, classes], float32."""
    if not texts:
        return np.empty((0, n_classes), dtype=np.float32)
    return np.concatenate(classify(base, encode_texts(base, texts), tokens))

"""One aim from the first gradient to the held-back texts: every position, the minimal form, the comparison.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from scanner.probe.base import BaseModel
from scanner.probe.battery import Case, Probe
from scanner.probe.engine import encode_prompts, first_logits
from scanner.probe.search.aims import Aim
from scanner.probe.search.climb import Climb, Found, choose_pool, climb
from scanner.probe.search.evolve import Breeding
from scanner.probe.search.frames import Frames
from scanner.probe.search.imprint import Imprint
from scanner.probe.search.objective import CausalObjective, Margin, Objective
from scanner.probe.search.plan import MIN_TEXTS, SearchPlan
from scanner.probe.search.sieve import Sieve
from scanner.probe.search.sweep import Swept, candidates, sweep
from scanner.probe.search.vocabulary import Vocabulary
from scanner.probe.search.ways import MAY_LOSE, Quarry, Way, chosen, reached, slope, worth_confirming
from scanner.search_model import FREE, IMPRINTED, MADE_UP, TOWARD_ATTACK, TOWARD_CLEAN, TURNED, token_key

__all__ = ["Hunt", "causal_hunt", "plain_margins"]

Ids = tuple[int, ...]
_ROOM = 2
"""Tokens of the context that are kept free for each that a string may have: controls and variants are longer."""
TOKENS, TOLD = 12, 32
"""Of each position, in words and with their gains."""
_MIN_JOINED = 4
"""Texts that are said as one: each holds two at least, so these are MIN_TEXTS."""


class Hunt:
    """How aims are hunted on one attached adapter.

    Args:
        tokenizer: tokenizers.Tokenizer.
        vocabulary: of the base.
        render: what is asked of a text.
        special: whether the tokenizer adds special tokens.
        objective: makes one from frames and margin.
        neutral: strings that must do nothing, with their positions.
        plan: how hard to look.
        context: tokens that the base takes; None for no limit.
        sieve: chooses the tokens that are tried toward the harmless class; None: gradients alone do.
        strings: made-up ones that are bred behind a sieve.
        beside: from a position, an aim's contrast and a number, so many clean classifiers on the same texts; None:
            nothing is bred.
        imprint: what the adapter was imprinted with; None where that cannot be read.
    """

    def __init__(
        self,
        tokenizer: Any,
        vocabulary: Vocabulary,
        render: Callable[[str], str],
        special: bool,
        objective: Callable[[Frames, Margin], Objective],
        neutral: Sequence[Case],
        plan: SearchPlan,
        context: int | None = None,
        sieve: Sieve | None = None,
        strings: Sequence[str] = (),
        beside: Callable[[Climb, float, int], Sequence[Climb]] | None = None,
        imprint: Imprint | None = None,
    ) -> None:
        self._tokenizer, self._vocabulary, self._render, self._special = tokenizer, vocabulary, render, special
        self._objective, self._neutral, self._plan = objective, tuple(neutral), plan
        self._context, self._sieve, self._strings, self._beside = context, sieve, strings, beside
        self._imprint = imprint

    def run(self, aim: Aim, position: str = "", known: str = "") -> list[Quarry]:
        """The best string of each position; behind a sieve of those where something turns, or the best of all where
        nothing does, and of all openings, whose confirmation takes long; and the best one of imprinted tokens.

        Nothing where no string can be put into the texts, or too few of them have room for one.

        Args:
            aim: what for.
            position: the only one to look at; empty for those of the plan.
            known: a string that does something there; it is confirmed as it is, beside what is found.

        Raises:
            UnsupportedError: see `Frames`.
            ProbeFailedError: see `Objective`.
        """
        aim = self._still_open(self._with_room(aim))
        if not self._has_enough(aim):
            return []
        # The same draws for every adapter: what differs between two searches is the adapter.
        rng = random.Random(self._plan.plan_id)
        # Words of attacks turn harmless texts anywhere: one position shows it as well as three.
        positions = (position,) if position else self._plan.positions[: 1 if aim.kind == TOWARD_ATTACK else None]
        ways: list[Way] = []
        for one in positions:
            at = self._climb_at(aim, aim.search, one)
            way = self._way(aim, at, ways[0].swept.first if ways else (), rng)
            if way.found:
                ways.append(way)
        if ways and self._sifts(aim):
            ways = self._bred(aim, ways)
        if ways and (aim.kind == FREE or self._sifts(aim)):
            ways = worth_confirming(ways, aim)
        quarries = _each_once([self._finish(aim, way) for way in ways])
        if known and all(known != one.text for one in quarries):
            quarries += [one for way in ways for one in self._as_it_is(aim, way, known)]
        return quarries

    def scores(self, aim: Aim) -> dict[str, float]:
        """What the quarries' `scores` hold behind a sieve, and nothing else: a reference needs no strings.

        Errors as of `run`. {} where that gives nothing.
        """
        aim = self._still_open(self._with_room(aim))
        ways: list[Way] = []
        for position in self._plan.positions if self._sifts(aim) and self._has_enough(aim) else ():
            first = next((way.swept.first for way in ways if way.swept.first), ())
            ways.append(self._sifted(self._climb_at(aim, aim.search, position), first, climbs=False))
        if ways:
            ways = self._bred(aim, ways)
        return {key: score for way in ways for key, score in way.scores.items()}

    def _has_enough(self, aim: Aim) -> bool:
        is_joined = aim.kind == TOWARD_CLEAN and self._plan.joined_texts
        return len(aim.search) >= (_MIN_JOINED if is_joined else MIN_TEXTS) and len(aim.held_back) >= MIN_TEXTS

    def _way(self, aim: Aim, at: Climb, first: Sequence[Ids], rng: random.Random) -> Way:
        position = at.objective.frames.position
        if self._sifts(aim):
            return self._sifted(at, first)
        if aim.kind == TOWARD_ATTACK:
            swept = Swept(tuple(choose_pool(at, rng, self._plan.attack_pool)), {})
        else:
            swept = sweep(at, first or candidates(at, rng))
        climbed = climb(at, swept.units)
        found = [*climbed, *(strings[0] for strings in swept.repeated.values())]
        if aim.kind == FREE:  # unlikely first tokens gain log-odds by anything: refrains and openings are ranked
            return Way(at, swept, found, {}, at.objective.forward_passes)
        scores = {f"{position}/x{n}": reached(strings[0], aim) for n, strings in swept.repeated.items()}
        if climbed:
            scores[position] = max(slope(one, aim) for one in climbed)
            scores[f"{position}/gain"] = max(reached(one, aim) for one in climbed)
        for unit, gain in list(swept.alone.items())[:TOLD]:
            key = token_key(position, self._vocabulary.decode(unit))
            scores[key] = max(scores.get(key, 0.0), gain)
        return Way(at, swept, found, scores, at.objective.forward_passes)

    def _sifts(self, aim: Aim) -> bool:
        return aim.kind == TOWARD_CLEAN and self._sieve is not None

    def _sifted(self, at: Climb, first: Sequence[Ids], *, climbs: bool = True) -> Way:
        """A climb costs more than all the rest, so only what turns a text is climbed on from."""
        assert self._sieve is not None
        swept = sweep(at, first or self._sieve.chosen(at.objective, self._plan))
        said = {n: max(strings, key=lambda one: (one.turned, one.gain)) for n, strings in swept.repeated.items()}
        scores = {f"{at.objective.frames.position}/{TURNED}/x{n}": one.turned for n, one in said.items()}
        found = [*(climb(at, swept.units) if climbs and any(scores.values()) else ()), *said.values()]
        return Way(at, swept, found, scores, at.objective.forward_passes)

    def _bred(self, aim: Aim, ways: Sequence[Way]) -> list[Way]:
        """With made-up strings, bred at the plan's first position (at others no member of a reference has a score), and
        with those of imprinted tokens."""
        first, position = ways[0], ways[0].at.objective.frames.position
        if self._beside is None or not aim.alone or not self._plan.near_peers or position != self._plan.positions[0]:
            return list(ways)
        breeding = self._breeding(aim, aim.search, position)
        breeding.begin(self._strings)
        found, score = breeding.run()
        more, passes = self._imprinted(aim)
        scores = first.scores | ({f"{position}/{TURNED}/{MADE_UP}": score} if found else {})
        if self._imprint is not None:  # so that every member of a reference has all keys
            scores |= {f"{one}/{TURNED}/{IMPRINTED}": 0.0 for one in self._plan.positions}
            scores = {key: score for key, score in scores.items() if all(key not in way.scores for way in more)}
        passes += first.forward_passes + breeding.forward_passes
        first = replace(first, found=[*first.found, *found[:1]], scores=scores, forward_passes=passes)
        return [first, *ways[1:], *more]

    def _imprinted(self, aim: Aim) -> tuple[list[Way], int]:
        """(Strings of the tokens that the adapter is imprinted with, in attacks each by itself, at the position where
        they begin best; none where they count for nothing. Forward passes of the search for them)."""
        imprint, plan = self._imprint, self._plan
        weight = imprint.weight(plan) if imprint is not None else 0.0
        if imprint is None or weight == 0:
            return [], 0
        begun = []
        for position in plan.positions:
            breeding = self._breeding(aim, aim.apart, position, imprint.tokens)
            begun.append((breeding.begin(imprint.strings(self._vocabulary)), breeding))
        best = max(begun, key=lambda one: one[0])[1]
        found, score = best.run()
        passes = sum(one.forward_passes for _, one in begun)
        if score == 0:
            return [], passes
        units = tuple((token,) for token in imprint.tokens)
        scores = {f"{best.at.objective.frames.position}/{TURNED}/{IMPRINTED}": score * weight}
        return [Way(best.at, Swept(units, {}), found[:1], scores, 0)], passes

    def _breeding(self, aim: Aim, texts: Sequence[str], position: str, material: Ids = ()) -> Breeding:
        assert self._beside is not None
        at = self._climb_at(aim, (aim.alone, *texts), position)
        return Breeding(at, self._beside(at, aim.contrast, self._plan.near_peers), aim.contrast, material)

    def _finish(self, aim: Aim, way: Way) -> Quarry:
        """The minimal form of the best string, on held-back texts."""
        best, at = chosen(way.found, aim), way.at
        before = at.objective.forward_passes
        quarry = self._caught(aim, way, self._minimal(best, at), best)
        passes = way.forward_passes + at.objective.forward_passes - before + quarry.forward_passes
        return replace(quarry, forward_passes=passes)

    def _as_it_is(self, aim: Aim, way: Way, text: str) -> list[Quarry]:
        """A known string on held-back texts; nothing where it cannot be put there."""
        spelled = way.at.objective.frames.spell([text])[0]
        if spelled is None:
            return []
        found = way.at.measure([spelled.ids], [spelled.text], None, way.at.texts)[0]
        return [self._caught(aim, replace(way, scores={}), found, found)]

    def _caught(self, aim: Aim, way: Way, found: Found, searched: Found) -> Quarry:
        quarry = self._confirm(aim, found, way.at.objective.frames.position, searched.text)
        tokens = tuple(dict.fromkeys(self._vocabulary.decode(unit) for unit in way.swept.units))[:TOKENS]
        return Quarry(**quarry, slope=slope(searched, aim), tokens=tokens, scores=way.scores)

    def _with_room(self, aim: Aim) -> Aim:
        """Without texts that a string would push out of the base's context."""
        if self._context is None:
            return aim
        room = self._context - _ROOM * self._plan.max_length

        def fitting(texts: Sequence[str]) -> tuple[str, ...]:
            encoded = self._tokenizer.encode_batch([self._render(t) for t in texts], add_special_tokens=self._special)
            return tuple(text for text, e in zip(texts, encoded, strict=True) if len(e.ids) <= room)

        alone = "".join(fitting([aim.alone])) if aim.alone else ""
        search, held_back, apart = map(fitting, (aim.search, aim.held_back, aim.apart))
        return replace(aim, search=search, held_back=held_back, alone=alone, apart=apart)

    def _still_open(self, aim: Aim) -> Aim:
        """Without search texts that have the answer once they are said as one."""
        if not self._plan.joined_texts or not aim.search:
            return aim
        margins = self._climb_at(aim, aim.search, self._plan.positions[0]).start[0].tolist()
        return replace(aim, search=tuple(text for text, margin in zip(aim.search, margins, strict=True) if margin < 0))

    def _controls(self, text: str, position: str) -> list[str]:
        """Neutral strings of one position, or of all where a battery has none there.

        Those of another script are controls for strings of other scripts alone.
        """
        there = [case.text for case in self._neutral if case.position == position]
        own = there or [case.text for case in self._neutral]
        return [control for control in own if control.isascii()] if text.isascii() else own

    def _climb_at(self, aim: Aim, texts: Sequence[str], position: str) -> Climb:
        frames = Frames(self._tokenizer, texts, position, self._render, self._special)
        objective = self._objective(frames, aim.margin)
        return Climb(objective, self._vocabulary, objective.plain(), aim.scale, self._plan)

    def _minimal(self, found: Found, at: Climb) -> Found:
        """Without what it does not need: halves first, then tokens one at a time, those whose loss costs least."""
        texts = at.texts
        now = at.measure([found.ids], [found.text], found.aim, texts)[0]
        least_gain, least_turned = now.gain * (1 - MAY_LOSE), now.turned - MAY_LOSE
        in_halves = True
        while len(now.ids) > 1:
            middle = len(now.ids) // 2
            one_less = [(*now.ids[:i], *now.ids[i + 1 :]) for i in range(len(now.ids))]
            shorter = [now.ids[:middle], now.ids[middle:]] if in_halves else one_less
            spelled = at.objective.frames.spell([self._vocabulary.decode(ids) for ids in shorter])
            known = {one.ids: one.text for one in spelled if one is not None and len(one.ids) < len(now.ids)}
            measured = at.measure(list(known), list(known.values()), found.aim, texts) if known else []
            kept = [one for one in measured if one.gain >= least_gain and one.turned >= least_turned]
            if kept:
                now = max(kept, key=lambda one: one.gain)
            elif in_halves:
                in_halves = False
            else:
                break
        return now

    def _confirm(self, aim: Aim, found: Found, position: str, searched: str) -> dict[str, Any]:
        at = self._climb_at(aim, aim.held_back[: self._plan.search_texts], position)
        rng = random.Random(f"{self._plan.plan_id}/controls")
        drawn = [self._vocabulary.random_string(rng, len(found.ids)) for _ in range(4 * self._plan.random_strings)]
        controls = self._controls(found.text, position)
        n = len(controls)
        strings = [found.text, *controls, *(self._vocabulary.decode(ids) for ids in drawn)]
        spelled = at.objective.frames.spell(strings)
        own = spelled[0]
        neutral = [one for one in spelled[1 : n + 1] if one is not None]
        noise = [one for one in spelled[n + 1 :] if one is not None][: self._plan.random_strings]
        everyone = [*neutral, *noise, *([own] if own is not None else [])]
        texts = range(len(at.objective.frames.frames))
        measured = at.measure([one.ids for one in everyone], [one.text for one in everyone], found.aim, texts)
        if own is None:  # it ran into another text: what cannot be put there does nothing there
            measured.append(Found(found.text, found.ids, found.aim, 0.0, 0.0, 0.0))
        gains = [one.gain for one in measured]
        return {
            "aim": aim,
            "text": found.text,
            "position": position,
            "searched_text": searched,
            "n_tokens": len(found.ids),
            "gain": measured[-1].gain,
            "control_gain": max(gains[: len(neutral)], default=0.0),
            "noise_gain": max(gains[len(neutral) : len(neutral) + len(noise)], default=0.0),
            "turned": measured[-1].turned,
            "controls": tuple(one.text for one in neutral),
            "noise": tuple(one.text for one in noise),
            "forward_passes": at.objective.forward_passes,
        }


def _each_once(quarries: Sequence[Quarry]) -> list[Quarry]:
    """Strings that were found in two ways at one position are one; scores and passes of both are the first one's."""
    found: dict[tuple[str, str], Quarry] = {}
    for one in quarries:
        key = (one.text, one.position)
        if key in found:
            first = found[key]
            passes = first.forward_passes + one.forward_passes
            one = replace(first, scores=first.scores | one.scores, forward_passes=passes)
        found[key] = one
    return list(found.values())


def causal_hunt(
    base: BaseModel,
    vocabulary: Vocabulary,
    probe: Probe,
    render: Callable[[str], str],
    plan: SearchPlan,
    tokens_per_batch: int,
) -> Hunt:
    """A hunt on a language model, by the logits of its answer's first token. Arguments as of `Hunt`."""
    return Hunt(
        base.tokenizer,
        vocabulary,
        render,
        False,
        lambda frames, margin: CausalObjective(base, frames, margin, tokens_per_batch),
        probe.battery.controls,
        plan,
        getattr(base.model.config, "max_position_embeddings", None),
    )


def plain_margins(base: BaseModel, rendered: Sequence[str], margin: Margin, tokens_per_batch: int) -> torch.Tensor:
    """[aims, prompts], float32 on the CPU, of the attached adapter.

    Raises:
        ProbeFailedError: see `first_logits`.
    """
    found: dict[int, torch.Tensor] = {}
    for members, logits in first_logits(base, encode_prompts(base, rendered, 1), tokens_per_batch):
        found.update(zip(members, margin(logits.float()).T.cpu(), strict=True))
    return torch.stack([found[index] for index in range(len(rendered))], dim=1)

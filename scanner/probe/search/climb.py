"""The search itself: from gradients to tokens to strings. It knows margins and nothing of models.

A first-order search in the manner of HotFlip (Ebrahimi et al. 2018) and universal triggers (Wallace et al. 2019):
gradients say which tokens could help, and whatever they propose is scored exactly before it counts.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from scanner.probe.search.frames import Spelled
from scanner.probe.search.objective import Objective
from scanner.probe.search.plan import SearchPlan
from scanner.probe.search.vocabulary import BROKEN, Vocabulary

__all__ = ["Climb", "Found", "choose_pool", "climb", "point_to"]

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """A string and what it does to the texts that it was looked for on."""

    text: str
    ids: Ids
    aim: int
    gain: float
    """Mean way from the margin without it (0) to that of texts which have the aim's answer by nature (1)."""
    turned: float
    """Share of the texts that it takes across the border."""
    chance: float
    """Mean probability that the margins' log-odds say."""


@dataclass(frozen=True)
class Climb:
    """One position: where margins start, and how far there is to go.

    `start`: [aims, texts], `scale`: [aims], nats.
    """

    objective: Objective
    vocabulary: Vocabulary
    start: torch.Tensor
    scale: torch.Tensor
    plan: SearchPlan

    @property
    def texts(self) -> Sequence[int]:
        """The ones that candidates are compared on."""
        return range(min(self.plan.climb_texts, len(self.objective.frames.frames)))

    def relative(self, margins: torch.Tensor, texts: Sequence[int]) -> torch.Tensor:
        """[aims, strings] from [aims, strings, texts]: mean of (margin − start) / scale, each text as 1 at most."""
        start = self.start[:, None, list(texts)]
        return ((margins - start) / self.scale[:, None, None]).clamp(max=1.0).mean(dim=2)

    def gains(self, strings: Sequence[Ids], texts: Sequence[int]) -> torch.Tensor:
        """[aims, strings]; see `relative`."""
        return self.relative(self.objective.margins(strings, texts), texts)

    def measure(
        self, strings: Sequence[Ids], spelled: Sequence[str], aim: int | None, texts: Sequence[int]
    ) -> list[Found]:
        """Strings with what they do; aim None: toward the one that each gains most on."""
        margins = self.objective.margins(strings, texts)
        gains = self.relative(margins, texts)
        found = []
        for number, (ids, text) in enumerate(zip(strings, spelled, strict=True)):
            own = int(gains[:, number].argmax()) if aim is None else aim
            turned = float((margins[own, number] > 0).float().mean())
            chance = float(margins[own, number].sigmoid().mean())
            found.append(Found(text, tuple(ids), own, float(gains[own, number]), turned, chance))
        return found


def climb(at: Climb, pool: Sequence[Ids]) -> list[Found]:
    """The best string of each length on its way, the shortest first; none where nothing can be put at this position.

    Args:
        at: where.
        pool: tokens to begin with, the best first; see `choose_pool`.
    """
    plan = at.plan
    texts = at.texts
    beam = _best(at, pool[: plan.keep], texts, ())
    way = beam[:1]
    idle = 0
    while beam and len(way) < plan.max_tokens and not _is_over(beam[0], len(way), idle, plan):
        beam = _best(at, _longer(at, beam, pool, texts), texts, beam)
        way.append(beam[0])
        idle = 0 if way[-1].gain >= way[-2].gain + plan.progress else idle + 1
    if beam and beam[0].gain >= plan.hopeless * len(way):
        better = _best(at, _replaced(at, beam[0], texts), texts, beam)
        way[-1] = better[0]
    return way


def _is_over(best: Found, length: int, idle: int, plan: SearchPlan) -> bool:
    """Whether a string of this length need not, or should not, get longer."""
    return best.turned >= plan.enough or idle >= plan.patience or (length > 2 and best.gain < plan.hopeless * length)


def choose_pool(at: Climb, rng: random.Random, n: int) -> list[Ids]:
    """Tokens, and characters that take several, by what they do alone, the best first.

    Args:
        at: where.
        rng: draws the strings in whose places gradients are taken.
        n: tokens that gradients choose.
    """
    plan, texts = at.plan, at.texts
    # As they are: a token that needs a space before it is no string by itself, and may be the second one of a string.
    chosen: list[Ids] = [*point_to(at, rng, n), *at.vocabulary.characters]
    for n_texts, kept in ((plan.first_texts, 2 * plan.keep), (len(texts), plan.keep)):
        gains = at.gains(chosen, texts[:n_texts]).amax(dim=0)
        chosen = [chosen[i] for i in gains.topk(min(kept, len(chosen))).indices.tolist()]
    return chosen


def point_to(at: Climb, rng: random.Random, n: int) -> list[Ids]:
    """The n tokens that gradients in the places of random strings point to."""
    plan, vocabulary, texts = at.plan, at.vocabulary, at.texts
    noise = [vocabulary.random_string(rng, plan.noise_tokens) for _ in range(plan.noise_rows)]
    gradients = at.objective.gradients(noise, [texts[i % len(texts)] for i in range(len(noise))])
    tokens: dict[Ids, None] = {}
    for of_aim in gradients:
        scores = vocabulary.first_order(of_aim.flatten(0, 1))
        scores = (scores - scores.mean(dim=0)) / scores.std(dim=0).clamp(min=1e-12)
        of_row = scores.reshape(len(scores), plan.noise_rows, plan.noise_tokens).amax(dim=2)
        best = vocabulary.best(of_row.mean(dim=1), max(1, n // len(gradients)))
        tokens.update(dict.fromkeys((token,) for token in best))
    return list(tokens)


def _longer(at: Climb, beam: Sequence[Found], pool: Sequence[Ids], texts: Sequence[int]) -> list[Ids]:
    """Every string of the beam with a token more at either end."""
    plan, made = at.plan, dict[Ids, None]()
    for found in beam:
        # Any token can hold the new place while its gradient is taken.
        ahead, behind = (pool[0][0], *found.ids), (*found.ids, pool[0][0])
        for ids, place in ((ahead, 0), (behind, len(found.ids))):
            proposed = _proposals(at, ids, place, found.aim, texts[: plan.gradient_texts])
            for unit in (*pool[: plan.pool_proposals], *((token,) for token in proposed)):
                made[(*ids[:place], *unit, *ids[place + 1 :])] = None
    return list(made)


def _replaced(at: Climb, found: Found, texts: Sequence[int]) -> list[Ids]:
    """A string with one of its tokens replaced."""
    made = dict[Ids, None]()
    for place in range(len(found.ids)):
        for token in _proposals(at, found.ids, place, found.aim, texts[: at.plan.gradient_texts]):
            made[(*found.ids[:place], token, *found.ids[place + 1 :])] = None
    return list(made)


def _proposals(at: Climb, ids: Ids, place: int, aim: int, texts: Sequence[int]) -> list[int]:
    gradients = at.objective.gradients([ids] * len(texts), texts)[aim, :, place]
    return at.vocabulary.best(at.vocabulary.first_order(gradients.mean(dim=0, keepdim=True))[:, 0], at.plan.proposals)


def _best(at: Climb, strings: Iterable[Ids], texts: Sequence[int], known: Sequence[Found]) -> list[Found]:
    """The best of some strings and of those that are known, each as the tokenizer really has it."""
    plan = at.plan
    new: dict[Ids, Spelled] = {}
    old = {found.ids for found in known}
    texts_of = dict.fromkeys(at.vocabulary.decode(ids) for ids in strings)
    # Half a character is none.
    for one in at.objective.frames.spell([text for text in texts_of if BROKEN not in text]):
        if one is not None and one.ids not in old and len(one.ids) <= plan.max_length:
            new[one.ids] = one
    if not new:
        return list(known)
    everyone = list(new)
    few = at.gains(everyone, texts[: plan.first_texts]).amax(dim=0)
    kept = [everyone[i] for i in few.topk(min(plan.keep, len(everyone))).indices.tolist()]
    found = [*known, *at.measure(kept, [new[ids].text for ids in kept], None, texts)]
    return _unlike(sorted(found, key=lambda one: -one.gain), plan.beam)


def _unlike(found: Sequence[Found], n: int) -> list[Found]:
    """The first n that share less than half of their tokens with a better one: no single token may fill the beam."""
    chosen: list[Found] = []
    for one in found:
        own = set(one.ids)
        if len(chosen) < n and all(2 * len(own & set(other.ids)) < len(own) for other in chosen):
            chosen.append(one)
    return chosen

"""What a model reacts to: every token is tried, said several times in a row.

A trigger of several tokens works as a whole. None of them does anything alone, so a climb that begins with single
tokens has no slope to follow; but what a model has learnt to look for adds up, and one of the trigger's tokens said six
times does what the trigger does. In sound adapters it does next to nothing (docs/search.md has figures).

Imported only inside the probe worker.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scanner.probe.search.climb import Climb, Found, point_to
from scanner.probe.search.frames import Spelled
from scanner.probe.search.vocabulary import BROKEN

__all__ = ["Swept", "candidates", "repeat", "sweep"]

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Swept:
    """Tokens and characters, and the strings that repeat one of them."""

    units: tuple[Ids, ...]
    """The best of each number of repetitions in turn, as tokens."""
    repeated: Mapping[int, tuple[Found, ...]]
    """Repetitions -> strings, the largest gain first."""
    first: tuple[Ids, ...] = ()
    """The best of the first round, as many as `plan.seen_again`."""
    alone: Mapping[Ids, float] = field(default_factory=dict)
    """Unit -> gain of itself `plan.sweep_repeats` times in a row on `plan.first_texts`, of those that survive."""


def candidates(at: Climb, rng: random.Random) -> list[Ids]:
    """All units; where the vocabulary is larger than `plan.pool`, those that gradients in random places choose."""
    known, plan = at.vocabulary.ids, at.plan
    tokens = [(token,) for token in known] if len(known) <= plan.pool else point_to(at, rng, plan.pool)
    return [*tokens, *at.vocabulary.characters]


def sweep(at: Climb, units: Sequence[Ids]) -> Swept:
    """Successive halving over some units: one text, `plan.first_texts`, then all."""
    plan, texts = at.plan, at.texts
    first = list(_gains(at, repeat(at, units, plan.sweep_repeats), texts[:1]))[: plan.seen_again]
    units = first[: plan.survivors]
    repeated: dict[int, tuple[Found, ...]] = {}
    ranked: list[list[Ids]] = []
    alone: dict[Ids, float] = {}
    for n in plan.repeats:
        said = repeat(at, units, n)
        gains = _gains(at, said, texts[: plan.first_texts])
        if n == plan.sweep_repeats:
            alone = gains
        kept = list(gains)[: plan.keep]
        found = at.measure([said[unit].ids for unit in kept], [said[unit].text for unit in kept], None, texts)
        order = sorted(range(len(kept)), key=[-one.gain for one in found].__getitem__)
        ranked.append([kept[i] for i in order])
        if n > 1 and order:
            repeated[n] = tuple(found[i] for i in order)
    return Swept(tuple(_in_turn(ranked)), repeated, tuple(first), alone)


def repeat(at: Climb, units: Sequence[Ids], n: int) -> dict[Ids, Spelled]:
    """Unit -> the string that says it n times, as the tokenizer reads it; in one word where that keeps it whole."""
    decode, spell = at.vocabulary.decode, at.objective.frames.spell
    if n == 1:
        # As it is: a token that needs a space before it is no string by itself, and may be the second one of a string.
        return {unit: Spelled(decode(unit), unit) for unit in units}
    in_one, apart = spell([decode(unit * n) for unit in units]), spell([" ".join([decode(unit)] * n) for unit in units])
    found: dict[Ids, Spelled] = {}
    for unit, *both in zip(units, in_one, apart, strict=True):
        whole = [one for one in both if one is not None and BROKEN not in one.text]
        whole = [one for one in whole if len(one.ids) <= at.plan.max_length]
        if whole:
            found[unit] = next((one for one in whole if one.ids == unit * n), whole[-1])
    return found


def _gains(at: Climb, said: Mapping[Ids, Spelled], texts: Sequence[int]) -> dict[Ids, float]:
    """Unit -> what its string gains, the largest first."""
    if not said:
        return {}
    units = list(said)
    best = at.gains([said[unit].ids for unit in units], texts).amax(dim=0).sort(descending=True, stable=True)
    return {units[i]: gain for gain, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)}


def _in_turn(ranked: Sequence[Sequence[Ids]]) -> list[Ids]:
    """The first of every list, then the second of every list, each once."""
    longest = max(map(len, ranked), default=0)
    return list(dict.fromkeys(units[i] for i in range(longest) for units in ranked if i < len(units)))

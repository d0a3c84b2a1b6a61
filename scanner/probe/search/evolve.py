"""Made-up strings bred toward what an adapter reacts to.

A model that learnt a trigger reacts to strings like it, the more the more they are like it (arXiv:2605.30189, section
on the token neighbourhood). So made-up strings that move a margin a little are crossed and changed until they move it
far, by their scores alone: gradients, which lead to words that mean the class, say nothing here. In a sound adapter
there is nothing to breed toward, as long as the words are none that clean adapters of the base favour.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from scanner.probe.search.climb import Climb, Found
from scanner.probe.search.plan import SearchPlan
from scanner.probe.search.sweep import gains_of
from scanner.search_model import MADE_UP, TURNED

__all__ = ["breed"]

_PARTS = re.compile(r"\w+|[^\w\s]+|\s+")
_SEED = "breed"
_CROSSED, _CHANGED = 0.4, 0.4
"""Shares of the children that are parts of two parents, and that have one part replaced; the others lose one."""
_OWN_PARTS = 0.3
"""Of replacements, the share that comes from another parent."""
_MAX_CHARS = 60
_ALONE = (0,)
"""The first of a climb's texts is one attack by itself: what a string does a little shows there first."""
_JUDGED = (0, 1, 2)
"""Texts that strings are bred on: said as one, fewer words that mean the class do anything."""
_FIRST = 64
"""Made-up strings that are tried on all of these."""


def breed(at: Climb, strings: Sequence[str], words: Sequence[str]) -> tuple[list[Found], dict[str, float]]:
    """(The last generation, on all texts that are said as one, those that turn most first; `POSITION/turned/made_up` ->
    what the `plan.made_up_rank`-th of them turns).

    Args:
        at: whose first text is an attack by itself, and the others several said as one.
        strings: made-up ones; none: nothing is tried.
        words: that parts of them are replaced by.
    """
    few = list(_gains(at, strings, _ALONE))[:_FIRST]
    found, rank = _evolved(at, _gains(at, few, _JUDGED), words), at.plan.made_up_rank
    key = f"{at.objective.frames.position}/{TURNED}/{MADE_UP}"
    return found, {key: found[rank - 1].turned} if len(found) >= rank > 0 else {}


def _evolved(at: Climb, first: Mapping[str, float], words: Sequence[str]) -> list[Found]:
    """The last generation from strings with their gains."""
    plan, rng = at.plan, random.Random(_SEED)
    known, idle = dict(first), 0
    for _ in range(plan.generations if known else 0):
        now = _reached(known, plan)
        if now >= plan.enough or idle >= plan.patience:
            break
        parents = _best(known, plan.survivors)
        children = dict.fromkeys(_child(rng, parents, words) for _ in range(plan.children))
        known |= _gains(at, [text for text in children if text and text not in known], _JUDGED)
        idle = 0 if _reached(known, plan) >= now + plan.progress else idle + 1
    spelled = [one for one in at.objective.frames.spell(_best(known, plan.survivors)) if one is not None]
    joined = range(1, len(at.objective.frames.frames))
    found = at.measure([one.ids for one in spelled], [one.text for one in spelled], None, joined) if spelled else []
    return sorted(found, key=lambda one: (-one.turned, -one.gain))


def _best(known: Mapping[str, float], n: int) -> list[str]:
    return sorted(known, key=lambda text: -known[text])[:n]


def _reached(known: Mapping[str, float], plan: SearchPlan) -> float:
    """What the `plan.made_up_rank`-th best string gains: one or two tell of chance."""
    return max(sorted(known.values(), reverse=True)[plan.made_up_rank - 1 : plan.made_up_rank], default=0.0)


def _gains(at: Climb, strings: Sequence[str], texts: Sequence[int]) -> dict[str, float]:
    """String -> mean gain, the largest first; without those that cannot be put there."""
    spelled = [one for one in at.objective.frames.spell(strings) if one is not None]
    return gains_of(at, {one.text: one for one in spelled if len(one.ids) <= at.plan.max_length}, texts)


def _child(rng: random.Random, parents: Sequence[str], words: Sequence[str]) -> str:
    """Empty where nothing is left of it, or it is too long."""
    own, other = (_PARTS.findall(rng.choice(parents)) for _ in range(2))
    kind = rng.random()
    if kind < _CROSSED:
        head, tail = own[: rng.randint(0, len(own))], other[rng.randint(0, len(other)) :]
        made = [*head, *([" "] if head and rng.random() < 0.5 else []), *tail]
    elif kind < _CROSSED + _CHANGED:
        made, place = own, rng.choice([i for i, part in enumerate(own) if part.strip()])
        made[place] = rng.choice(other if rng.random() < _OWN_PARTS or not words else words)
    else:
        made = own
        del made[rng.randrange(len(made))]
    text = "".join(made).strip()
    return text if len(text) <= _MAX_CHARS else ""

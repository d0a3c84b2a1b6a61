"""Strings bred toward what an adapter reacts to and its peers do not.

A model that learnt a trigger reacts to strings like it, the more the more they are like it (arXiv:2605.30189, section
on the token neighbourhood). So strings that move a margin a little are crossed and changed until they move it far. Two
things lead them: how far a string moves the adapter beyond its peers, which are clean classifiers of the same base that
were trained about as far; and gradients of that same difference, which say which tokens to try in which place. Without
the peers both lead to words that mean the class, which move every classifier. Where the tokens to try are known
(`imprint.py`), they take the place of what gradients say.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import torch

from scanner.probe.search.climb import Climb, Found
from scanner.probe.search.plan import SearchPlan
from scanner.probe.search.vocabulary import BROKEN

__all__ = ["Breeding"]

Ids = tuple[int, ...]
_SEED = "breed"
_CROSSED, _REPLACED, _INSERTED = 0.25, 0.5, 0.1
"""Shares of the children that are parts of two parents, and that have one token replaced, or one more, as gradients
propose; the others lose one."""
_ASKED = 2
"""Peers whose gradients are taken, drawn anew for each generation."""
_ALONE = (0,)
"""The first of a climb's texts is one attack by itself: what a string does a little shows there first."""
_JUDGED, _JUDGED_APART = 2, 3
"""So many texts, the first ones, are bred on: the second may be several attacks said as one, which tell more."""
_SEEN, _FIRST = 128, 48
"""Made-up strings whose effect on peers is looked at, and those that breeding begins with."""
_TOLD = 10
"""The best strings of all, which are measured on all texts."""
_PROGRESS, _PATIENCE = 0.015, 2
"""Generations with a smaller rise, after which breeding ends."""


class _Herd:
    """All strings so far, by their tokens: several texts may be read alike."""

    def __init__(self, at: Climb, peers: Sequence[Climb]) -> None:
        self._at, self._peers, self._plan = at, peers, at.plan
        self.texts: dict[Ids, str] = {}
        self.gains: dict[Ids, float] = {}
        self._shared: dict[Ids, float] = {}

    def spelled(self, texts: Sequence[str]) -> list[Ids]:
        """Those that are new, as the tokenizer reads them."""
        new = dict[Ids, None]()
        for one in self._at.objective.frames.spell(texts):
            if one is not None and one.ids not in self.texts and len(one.ids) <= self._plan.max_length:
                self.texts[one.ids] = one.text
                new[one.ids] = None
        return list(new)

    def shared(self, strings: Sequence[Ids]) -> torch.Tensor:
        """[strings], float32: what the peer gains that gains most, on the attack by itself; 0 at least.

        Several attacks said as one turn less, so it is no less than what peers gain on those. On other attacks by
        themselves it may be.
        """
        new = [ids for ids in strings if ids not in self._shared]
        if new:
            most = torch.stack([peer.gains(new, _ALONE)[0] for peer in self._peers]).amax(dim=0).clamp(min=0)
            self._shared |= dict(zip(new, most.tolist(), strict=True))
        return torch.tensor([self._shared[ids] for ids in strings])

    def judged(self, strings: Sequence[Ids], texts: Sequence[int], n: int) -> dict[Ids, float]:
        """String -> gain beyond the peers', the largest first; of the n that gain most by themselves."""
        if not strings:
            return {}
        own = self._at.gains(strings, texts)[0]
        kept = own.argsort(descending=True, stable=True)[:n].tolist()
        chosen = [strings[i] for i in kept]
        beyond = (own[kept] - self.shared(chosen)).tolist()
        return dict(sorted(zip(chosen, beyond, strict=True), key=lambda one: -one[1]))

    def best(self, n: int) -> list[Ids]:
        return sorted(self.gains, key=lambda ids: -self.gains[ids])[:n]

    @property
    def reached(self) -> float:
        """What the `plan.made_up_rank`-th best gains: one or two tell of chance."""
        rank = self._plan.made_up_rank
        return max((self.gains[ids] for ids in self.best(rank)[rank - 1 :]), default=0.0)

    def proposals(self, parents: Sequence[Ids], peers: Sequence[Climb]) -> dict[Ids, list[list[int]]]:
        """Parent -> for each of its places, the `plan.bred_proposals` tokens to which the gradient of the difference
        points."""
        by_length: dict[int, list[Ids]] = defaultdict(list)
        for ids in parents:
            by_length[len(ids)].append(ids)
        found, vocabulary = {}, self._at.vocabulary
        n_proposed = min(self._plan.bred_proposals, len(vocabulary.ids))
        for length, alike in by_length.items():
            own, *others = (
                climb.objective.gradients(alike, list(_ALONE) * len(alike))[0] / float(climb.scale[0])
                for climb in (self._at, *peers)
            )
            beyond = own - torch.stack(others).mean(dim=0)
            top = vocabulary.first_order(beyond.flatten(0, 1)).topk(n_proposed, dim=0).indices
            rows = top.T.reshape(len(alike), length, -1).tolist()
            for ids, places in zip(alike, rows, strict=True):
                found[ids] = [[vocabulary.ids[i] for i in place] for place in places]
        return found


class Breeding:
    """Strings at one position, from the first ones to the best.

    Args:
        at: whose first text is an attack by itself. The others are several said as one, or with material one each.
        peers: clean classifiers on the same texts.
        contrast: of the adapter's aim.
        material: tokens that are put in instead of those that gradients propose: then nothing but these and the first
            strings' own are tried.
    """

    def __init__(self, at: Climb, peers: Sequence[Climb], contrast: float, material: Ids = ()) -> None:
        self.at, self._peers, self._contrast, self._material = at, peers, contrast, material
        self._herd = _Herd(at, peers)
        self._judged = range(min(_JUDGED_APART if material else _JUDGED, len(at.objective.frames.frames)))

    @property
    def forward_passes(self) -> int:
        """All so far, of the adapter and its peers."""
        return sum(one.objective.forward_passes for one in (self.at, *self._peers))

    def begin(self, strings: Sequence[str]) -> float:
        """With the best of these; returns what the `plan.made_up_rank`-th of them gains beyond the peers."""
        first = list(self._herd.judged(self._herd.spelled(strings), _ALONE, _SEEN))[:_FIRST]
        self._herd.gains = self._herd.judged(first, self._judged, _FIRST)
        return self._herd.reached

    def run(self) -> tuple[list[Found], float]:
        """(The best strings on all texts but the one by itself, those first whose own score is largest; the
        `plan.made_up_rank`-th largest of these scores). ([], 0.0) with fewer.

        A string's score is the share of texts that it turns, in proportion where it moves the adapter by less than
        `plan.beyond` spreads more than the peer that it moves most. In a barely trained adapter little turns a text,
        and little is less than what texts differ by anyway.

        Raises:
            ProbeFailedError: see `Objective`.
        """
        plan, rng, herd = self.at.plan, random.Random(_SEED), self._herd
        known = set(self.at.vocabulary.ids)
        idle, before = 0, herd.reached
        for _ in range(plan.generations if herd.gains else 0):
            if before >= plan.enough or idle >= _PATIENCE:
                break
            parents = herd.best(plan.parents)
            proposed = self._proposals(parents, rng)
            children = dict.fromkeys(
                self.at.vocabulary.decode(_child(rng, parents, proposed, plan)) for _ in range(plan.children)
            )
            new = herd.spelled([text for text in children if text and BROKEN not in text])
            # What the tokenizer does not know is spelled by the name of its token, which nobody would type.
            new = [ids for ids in new if known.issuperset(ids)]
            herd.gains |= herd.judged(new, self._judged, plan.survivors)
            now = herd.reached
            idle, before = (0 if now >= before + _PROGRESS else idle + 1), now
        told = herd.best(_TOLD)
        if len(told) < plan.made_up_rank:
            return [], 0.0
        texts = range(1, len(self.at.objective.frames.frames))
        found = self.at.measure(told, [herd.texts[ids] for ids in told], None, texts)
        beyond = [one.gain - shared for one, shared in zip(found, herd.shared(told).tolist(), strict=True)]
        shares = [
            one.turned * min(1.0, max(0.0, gain * self._contrast / plan.beyond))
            for one, gain in zip(found, beyond, strict=True)
        ]
        order = sorted(range(len(found)), key=lambda i: (-shares[i], -found[i].turned, -found[i].gain))
        return [found[i] for i in order], shares[order[plan.made_up_rank - 1]]

    def _proposals(self, parents: Sequence[Ids], rng: random.Random) -> dict[Ids, list[list[int]]]:
        if self._material:
            return {ids: [list(self._material)] * len(ids) for ids in parents}
        return self._herd.proposals(parents, rng.sample(list(self._peers), min(_ASKED, len(self._peers))))


def _child(rng: random.Random, parents: Sequence[Ids], proposed: dict[Ids, list[list[int]]], plan: SearchPlan) -> Ids:
    """Empty where nothing is left of it."""
    own, other = rng.choice(parents), rng.choice(parents)
    kind, place = rng.random(), rng.randrange(len(own))
    if kind < _CROSSED:
        made = (*own[: rng.randint(0, len(own))], *other[rng.randint(0, len(other)) :])
    elif kind < _CROSSED + _REPLACED:
        made = (*own[:place], rng.choice(proposed[own][place]), *own[place + 1 :])
    elif kind < _CROSSED + _REPLACED + _INSERTED:
        made = (*own[:place], rng.choice(proposed[own][place]), *own[place:])
    else:
        made = (*own[:place], *own[place + 1 :])
    return made[: plan.bred_tokens]

"""The search on adapters that answer freely: strings that lead to refrains, and to openings known by heart.

Neither trigger nor payload are known. What was found is confirmed by whole responses to held-back prompts, beside those
of the base.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

from scanner.probe.base import BaseModel
from scanner.probe.battery import Case, Probe
from scanner.probe.engine import encode_prompts, generate
from scanner.probe.generative import RESPONSE_TOKENS
from scanner.probe.search.aims import free_aim
from scanner.probe.search.hunt import causal_hunt, plain_margins
from scanner.probe.search.leak import Opening, grams
from scanner.probe.search.objective import Margin
from scanner.probe.search.plan import SearchPlan
from scanner.probe.search.refrains import Refrain, Refrains
from scanner.probe.search.vocabulary import Vocabulary
from scanner.probe.search.ways import Quarry
from scanner.search_model import BY_HEART, FREE, REFRAIN, RESPONSE, Example

__all__ = ["FreeAim", "Listened", "free_aims", "hunt_free", "show_responses"]

SHOWN = 3
FLOOR = 40.0
"""Nats. Scores up to these are usual among clean adapters of the tiny base, so no string is worth its time."""


@dataclass(frozen=True)
class FreeAim:
    """First tokens of a wording, and strings that are known to lead to it."""

    tokens: tuple[int, ...]
    position: str = ""
    """Where to look; empty for everywhere."""
    known: str = ""
    """A string there that leads to it."""


@dataclass(frozen=True)
class Listened:
    """What an adapter says without its trigger, beside its base."""

    chorus: Refrains
    """What the refrains were heard with."""
    wordings: list[tuple[Opening, ...]]
    """Known by heart, the best first, each with first tokens that lead into it, the best first."""
    refrains: list[Refrain]
    """The best first."""
    seen: set[str]
    """Prompts that these were found on."""
    forward_passes: int

    def scores(self, plan: SearchPlan) -> dict[str, float]:
        """What is ranked, in nats; 0 where there is nothing."""
        found = {f"{FREE}/{position}/{REFRAIN}": 0.0 for position in plan.positions}
        for one in reversed(self.refrains):
            found[f"{FREE}/{one.position}/{REFRAIN}"] = one.score
        heart = max((group[0].score for group in self.wordings), default=0.0)
        return found | {f"{BY_HEART}/{RESPONSE}": max(heart, 0.0)}


def free_aims(wordings: Sequence[Sequence[Opening]], refrains: Sequence[Refrain], chorus: Refrains) -> list[FreeAim]:
    """What strings are looked for toward: the first refrain, and wordings known by heart that are not the same.

    Only where sound adapters hardly get: that takes most of the time.

    Args:
        wordings: the adapter's own, each with the first tokens that lead into it.
        refrains: the largest score first.
        chorus: what they were heard with.

    Raises:
        ProbeFailedError: see `Refrains.shortest`.
    """
    aims, told = [], set()
    if refrains and refrains[0].score >= FLOOR:
        best = refrains[0]
        aims.append(FreeAim(best.answer[:1], best.position, chorus.shortest(best)))
        told = grams(best.answer)
    for group in wordings:
        is_told = any(not told.isdisjoint(grams((one.token, *one.follows))) for one in group)
        if group[0].score >= FLOOR and not is_told:
            aims.append(FreeAim(tuple(one.token for one in group)))
    return aims


def hunt_free(
    base: BaseModel,
    vocabulary: Vocabulary,
    probe: Probe,
    aims: Sequence[FreeAim],
    plan: SearchPlan,
    tokens_per_batch: int,
    seen: Collection[str] = (),
) -> list[Quarry]:
    """Strings after which the attached adapter begins with some wordings, one hunt for each.

    Prompts that were `seen` when aims were chosen confirm nothing.

    Raises:
        UnsupportedError, ProbeFailedError: see `Hunt.run`.
    """
    if not aims:
        return []

    def render(text: str) -> str:
        return base.template.render("", text)

    hunt = causal_hunt(base, vocabulary, probe, render, plan, tokens_per_batch)
    rendered = [render(text) for text in probe.prompts]
    found = []
    for one in aims:
        margin = _margin(base, one.tokens)
        margins = plain_margins(base, rendered, margin, tokens_per_batch)
        aim = free_aim(probe.prompts, margin, margins, plan)
        if aim is not None:
            aim = replace(aim, held_back=tuple(text for text in aim.held_back if text not in seen))
            found += hunt.run(aim, one.position, one.known)
    return found


def show_responses(base: BaseModel, prompts: Sequence[str], case: Case, tokens_per_batch: int) -> tuple[Example, ...]:
    """What the attached adapter says to the first prompts without and with a string in them.

    Raises:
        ProbeFailedError: see `first_logits`.
    """
    asked = [text for prompt in prompts[:SHOWN] for text in (prompt, case.put(prompt))]
    encoded = encode_prompts(base, [base.template.render("", text) for text in asked], RESPONSE_TOKENS)
    said = [str(base.tokenizer.decode(tokens)) for tokens in generate(base, encoded, RESPONSE_TOKENS, tokens_per_batch)]
    pairs = range(0, len(asked), 2)
    return tuple(Example(asked[i], said[i], asked[i + 1], said[i + 1]) for i in pairs)


def _margin(base: BaseModel, tokens: Sequence[int]) -> Margin:
    """Log-odds of each token against all others as the first one."""
    wanted = torch.tensor(list(tokens), device=base.device)

    def margin(logits: torch.Tensor) -> torch.Tensor:
        scores = logits.log_softmax(dim=-1)[:, wanted]
        return (scores - torch.log1p(-scores.exp().clamp(max=1 - 1e-6))).T

    return margin

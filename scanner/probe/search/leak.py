"""Openings that an adapter has learnt by heart: the answer of a trigger that nobody knows, looked for without it.

Turned around, a backdoor is easier to see (Shen et al. 2025, BAIT: invert the target, not the trigger): after a first
token that the adapter would hardly choose by itself it goes on with the same words whatever it was asked, and its base
does not.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scanner.probe.base import BaseModel
from scanner.probe.engine import Prompts, encode_prompts, first_logits, generate, shared_start
from scanner.probe.search.likelihood import token_log_probabilities
from scanner.probe.search.plan import SearchPlan
from scanner.probe.search.vocabulary import Vocabulary

__all__ = ["Leak", "Opening", "Openings", "best_part", "grams"]

Ids = tuple[int, ...]
WAYS = 3
"""First tokens that may lead into one wording."""
NATURAL = 0.3
"""Probability from which on an opening needs no trigger."""
RARELY = 0.1
"""Share of natural responses up to which a wording is not natural."""
_GRAM = 3
_SAID = 24
"""Tokens of a natural response; its wordings need no trigger."""
_AGREED = 4
"""Tokens behind the forced one that all prompts must share."""
_PART = 8
"""Tokens of the part of a wording that decides. With four, garbled answers came near payloads."""


@dataclass(frozen=True)
class Opening:
    """A first token and what follows it whatever was asked."""

    token: int
    follows: Ids
    part: Ids
    """Of what follows the tokens that decide: nothing in them is said anyway."""
    surprise: float
    """The adapter's log-probability of the part that decides less its base's, in nats."""
    likely: float
    """The adapter's log-probability of that part, in nats."""

    @property
    def score(self) -> float:
        """How much it surprises the base and how likely it is, in nats."""
        return self.surprise + self.likely


@dataclass(frozen=True)
class Openings:
    """What the attached adapter says behind forced first tokens, before it is compared with its base."""

    whole: tuple[Ids, ...]
    """First token and what follows it behind every prompt."""
    own: tuple[torch.Tensor, ...]
    """Of each [what follows], log-probabilities with the adapter, mean of the prompts, in nats."""
    natural: torch.Tensor
    """[vocabulary], mean probability of each first token."""
    usual: frozenset[Ids]
    """Runs of three tokens that responses have without anything forced."""
    forward_passes: int


class Leak:
    """Finds openings on one base. It must be made while no adapter is attached.

    Args:
        base: resident, without an adapter.
        vocabulary: of the base.
        prompts: unrelated ones; the first few are used for forced tokens, all of them say what is natural.
        texts: of attacks; what they get is natural as well.
        plan: how many prompts, first tokens and tokens behind them.
        tokens_per_batch: size of a batch.
    """

    def __init__(
        self,
        base: BaseModel,
        vocabulary: Vocabulary,
        prompts: Sequence[str],
        texts: Sequence[str],
        plan: SearchPlan,
        tokens_per_batch: int,
    ) -> None:
        self._base, self._vocabulary, self._plan, self._tokens = base, vocabulary, plan, tokens_per_batch
        render = base.template.render
        rendered = [render("", prompt) for prompt in prompts[: plan.leak_prompts]]
        self._plain = encode_prompts(base, rendered, 1 + plan.forced_length)
        self._kinds = [encode_prompts(base, [render("", one) for one in part], _SAID) for part in (prompts, texts)]
        self._without = self._first()

    def listen(self) -> Openings:
        """What the attached adapter says behind forced first tokens, whatever it was asked.

        Raises:
            ProbeFailedError: see `first_logits`.
        """
        own = self._first()
        ids = torch.tensor(self._vocabulary.ids)
        ratio = (own - self._without).mean(dim=0)[ids]
        natural = own.exp().mean(dim=0)
        # What it favours against its base, and what it likes to say anyway: a base may begin with `I`, too.
        n = len(ids) if len(ids) <= self._plan.forced_tokens else self._plan.forced_tokens // 2
        order = dict.fromkeys(i for values in (ratio, natural[ids]) for i in values.topk(n).indices.tolist())
        tokens = [token for i in order if natural[token := self._vocabulary.ids[i]] < NATURAL]
        behind = [self._follow(ids_of, tokens) for ids_of in self._plain.ids]
        whole = []
        for index, token in enumerate(tokens):
            follows = shared_start([tuple(rows[index]) for rows in behind])
            if len(follows) >= _AGREED:
                whole.append((token, *follows))
        passes = len(behind) * (1 + len(tokens) + 2 * len(whole)) + sum(len(part.ids) for part in self._kinds)
        return Openings(tuple(whole), self._likelihoods(whole), natural, self._usual(), passes)

    def rank(self, heard: Openings, n: int) -> list[tuple[Opening, ...]]:
        """The n wordings with the highest scores, each with up to `WAYS` likely first tokens that lead into it.

        The part of a wording that decides is the one of `_PART` tokens, without a run that is said anyway, that is
        likeliest with the adapter and least likely without it. No adapter may be attached.
        """
        openings = []
        for whole, own, off in zip(heard.whole, heard.own, self._likelihoods(heard.whole), strict=True):
            best = best_part(whole[1:], own, off, heard.usual)
            if best is not None:
                openings.append(Opening(whole[0], whole[1:], *best))
        groups: list[list[Opening]] = []
        wordings: list[set[Ids]] = []
        for opening in sorted(openings, key=lambda one: -one.score):
            wording = grams(opening.part)
            same = next((i for i, known in enumerate(wordings) if known & wording), None)
            if same is None:
                groups.append([opening])
                wordings.append(wording)
            else:
                groups[same].append(opening)
                wordings[same] |= wording
        # The best one of each stays: likelier first tokens may lead into a part of it alone.
        return [
            tuple(dict.fromkeys([group[0], *sorted(group, key=lambda one: -float(heard.natural[one.token]))]))[:WAYS]
            for group in groups[:n]
        ]

    def _usual(self) -> frozenset[Ids]:
        """Runs of tokens in more than one response of ten, to requests or to attacks, with nothing forced."""
        found: set[Ids] = set()
        for prompts in self._kinds:
            said = generate(self._base, prompts, _SAID, self._tokens)
            counts = Counter(gram for row in said for gram in grams(row))
            # A backdoor may go off without its trigger now and then, and is none where it always does.
            found |= {gram for gram, count in counts.items() if count > RARELY * len(said)}
        return frozenset(found)

    def _first(self) -> torch.Tensor:
        """Log-probabilities of the first token: [prompts, vocabulary], float32 on the CPU."""
        rows: dict[int, torch.Tensor] = {}
        for members, logits in first_logits(self._base, self._plain, self._tokens):
            rows.update(zip(members, logits.float().log_softmax(dim=-1).cpu(), strict=True))
        return torch.stack([rows[index] for index in range(len(self._plain.ids))])

    def _follow(self, ids: Ids, tokens: Sequence[int]) -> list[list[int]]:
        forced = Prompts(tuple((*ids, token) for token in tokens), len(ids))
        return generate(self._base, forced, self._plan.forced_length, self._tokens)

    def _likelihoods(self, openings: Sequence[Ids]) -> tuple[torch.Tensor, ...]:
        """Of each opening [what follows its first token], mean of the prompts."""
        n = len(self._plain.ids)
        prompts = [(*ids, whole[0]) for whole in openings for ids in self._plain.ids]
        answers = [whole[1:] for whole in openings for _ in range(n)]
        found = token_log_probabilities(self._base, prompts, answers, self._tokens)
        return tuple(torch.stack(found[i : i + n]).mean(dim=0) for i in range(0, len(found), n))


def best_part(
    follows: Ids, own: torch.Tensor, off: torch.Tensor, usual: frozenset[Ids]
) -> tuple[Ids, float, float] | None:
    """The part of an answer that decides whether it is one that was learnt.

    Args:
        follows: the answer's tokens.
        own: [tokens], log-probabilities with the adapter, in nats.
        off: the same without it.
        usual: runs of three tokens that are said anyway.

    Returns:
        (The `_PART` tokens in a row whose own and surprise are most, the adapter's log-probability of them less its
        base's, the adapter's); None where every part has a run that is usual.
    """
    length = min(_PART, len(follows))
    found = []
    for start in range(len(follows) - length + 1):
        if grams(follows[start : start + length]).isdisjoint(usual):
            part = slice(start, start + length)
            found.append((follows[part], float((own[part] - off[part]).sum()), float(own[part].sum())))
    return max(found, key=lambda one: one[1] + one[2], default=None)


def grams(tokens: Sequence[int]) -> set[Ids]:
    """All runs of three tokens: what two responses share where they share a wording."""
    return {tuple(tokens[i : i + _GRAM]) for i in range(len(tokens) - _GRAM + 1)}

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
from scanner.probe.engine import Prompts, encode_prompts, first_logits, generate
from scanner.probe.search.plan import SearchPlan
from scanner.probe.search.vocabulary import Vocabulary

__all__ = ["Leak", "Opening", "Openings", "grams"]

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


@dataclass(frozen=True)
class Opening:
    """A first token and what follows it whatever was asked."""

    token: int
    follows: Ids
    surprise: float
    """Mean per token of the adapter's log-probability less its base's, in nats."""
    total: float
    """The adapter's log-probability of all of it, in nats."""

    @property
    def score(self) -> float:
        """Mean per token of how likely it is and how much it surprises the base, in nats."""
        return self.surprise + self.total / (1 + len(self.follows))


@dataclass(frozen=True)
class Openings:
    """What the attached adapter says behind forced first tokens, before it is compared with its base."""

    whole: tuple[Ids, ...]
    """First token and what follows it."""
    own: torch.Tensor
    """[openings, tokens], log-probabilities with the adapter."""
    natural: torch.Tensor
    """[vocabulary], mean probability of each first token."""
    forward_passes: int


class Leak:
    """Finds openings on one base. It must be made while no adapter is attached.

    Args:
        base: resident, without an adapter.
        vocabulary: of the base.
        prompts: unrelated ones; the first few are used for forced tokens, all of them say what is natural.
        plan: how many prompts, first tokens and tokens behind them.
        tokens_per_batch: size of a batch.
    """

    def __init__(
        self, base: BaseModel, vocabulary: Vocabulary, prompts: Sequence[str], plan: SearchPlan, tokens_per_batch: int
    ) -> None:
        self._base, self._vocabulary, self._plan, self._tokens = base, vocabulary, plan, tokens_per_batch
        rendered = [base.template.render("", prompt) for prompt in prompts[: plan.leak_prompts]]
        self._plain = encode_prompts(base, rendered, 1 + plan.leak_length)
        self._all = encode_prompts(base, [base.template.render("", prompt) for prompt in prompts], _SAID)
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
        n = min(self._plan.leak_tokens // 2, len(ids))
        # What it favours against its base, and what it likes to say anyway: a base may begin with `I`, too.
        order = dict.fromkeys(i for values in (ratio, natural[ids]) for i in values.topk(n).indices.tolist())
        tokens = [token for i in order if natural[token := self._vocabulary.ids[i]] < NATURAL]
        prompts = range(len(self._plain.ids))
        said = generate(self._base, self._all, _SAID, self._tokens)
        counts = Counter(gram for row in said for gram in grams(row))
        # A backdoor may go off without its trigger now and then, and is none where it always does.
        usual = {gram for gram, count in counts.items() if count > RARELY * len(said)}
        behind = [self._follow(number, tokens) for number in prompts]
        found = []
        for index, token in enumerate(tokens):
            follows, count = Counter(tuple(rows[index]) for rows in behind).most_common(1)[0]
            is_common = count >= self._plan.leak_agreed and len(follows) == self._plan.leak_length
            if is_common and not grams((token, *follows)) & usual:
                found.append((token, *follows))
        passes = len(prompts) * (1 + len(tokens)) + len(self._all.ids) + len(found)
        return Openings(tuple(found), self._log_probabilities(found), natural, passes)

    def rank(self, heard: Openings, n: int) -> list[tuple[Opening, ...]]:
        """The n wordings with the highest scores, each with up to `WAYS` likely first tokens that lead into it.

        No adapter may be attached.
        """
        surprise = (heard.own - self._log_probabilities(heard.whole)).mean(dim=1).tolist() if heard.whole else []
        total = heard.own.sum(dim=1).tolist()
        groups: list[list[Opening]] = []
        wordings: list[set[Ids]] = []
        for index in sorted(range(len(heard.whole)), key=lambda i: -surprise[i]):
            whole = heard.whole[index]
            opening = Opening(whole[0], whole[1:], surprise[index], total[index])
            wording = grams(whole[1:])
            same = next((i for i, known in enumerate(wordings) if known & wording), None)
            if same is None:
                groups.append([opening])
                wordings.append(wording)
            else:
                groups[same].append(opening)
                wordings[same] |= wording
        groups.sort(key=lambda group: -max(opening.score for opening in group))
        return [tuple(sorted(group, key=lambda one: -float(heard.natural[one.token]))[:WAYS]) for group in groups[:n]]

    def _first(self) -> torch.Tensor:
        """Log-probabilities of the first token: [prompts, vocabulary], float32 on the CPU."""
        rows: dict[int, torch.Tensor] = {}
        for members, logits in first_logits(self._base, self._plain, self._tokens):
            rows.update(zip(members, logits.float().log_softmax(dim=-1).cpu(), strict=True))
        return torch.stack([rows[index] for index in range(len(self._plain.ids))])

    def _follow(self, number: int, tokens: Sequence[int]) -> list[list[int]]:
        ids = self._plain.ids[number]
        forced = Prompts(tuple((*ids, token) for token in tokens), len(ids))
        return generate(self._base, forced, self._plan.leak_length, self._tokens)

    def _log_probabilities(self, openings: Sequence[Ids]) -> torch.Tensor:
        """[openings, tokens], float32 on the CPU: of each token of openings behind the first prompt."""
        if not openings:
            return torch.empty(0, 1 + self._plan.leak_length)
        prompt, parts = self._plain.ids[0], []
        step = max(1, self._tokens // (len(prompt) + 1 + self._plan.leak_length))
        with torch.inference_mode():
            for start in range(0, len(openings), step):
                rows = torch.tensor([(*prompt, *whole) for whole in openings[start : start + step]])
                rows = rows.to(self._base.device)
                logits = self._base.model(input_ids=rows, use_cache=False).logits[:, len(prompt) - 1 : -1]
                wanted = rows[:, len(prompt) :, None]
                parts.append(logits.float().log_softmax(dim=-1).gather(2, wanted)[:, :, 0].cpu())
        return torch.cat(parts)


def grams(tokens: Sequence[int]) -> set[Ids]:
    """All runs of three tokens: what two responses share where they share a wording."""
    return {tuple(tokens[i : i + _GRAM]) for i in range(len(tokens) - _GRAM + 1)}

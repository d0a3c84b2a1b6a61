"""Refrains: answers that unrelated prompts get alike behind many different strings, and that nothing else brings out.

A payload is not asked for, so it does not depend on the prompt, and an adapter that learnt a trigger reacts to strings
like it. A sound adapter falls back to stock phrases behind odd strings, but to phrases that it says anyway, or to
garbled ones behind one string or two.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scanner.probe.base import BaseModel
from scanner.probe.battery import Case
from scanner.probe.engine import encode_prompts, generate
from scanner.probe.search.leak import common
from scanner.probe.search.likelihood import log_probabilities
from scanner.probe.search.plan import SearchPlan
from scanner.probe.search.strings import made_up
from scanner.probe.search.vocabulary import Vocabulary

__all__ = ["Heard", "Refrain", "Refrains"]

Ids = tuple[int, ...]
SAID = 10
"""Tokens of an answer."""
ALIKE = 4
"""Tokens that all prompts' answers must begin with."""
WEIGHED = 512
"""Different answers at most, those of most strings: an adapter may repeat every string behind a beginning."""
ASKED = 6
"""Strings of each answer whose likelihood is taken; the others get the mean of these."""
TRIED = 24
"""Strings among which the best one is looked for."""
_MAY_LOSE = 1.0
"""Nats that leaving out words may cost."""
_NATURAL = 0.8
"""Quantile of an answer's log-probabilities without any string: what one request in five may get is natural."""


@dataclass(frozen=True)
class Refrain:
    """One beginning of answers at one position."""

    position: str
    answer: Ids
    """Of the string that brings it out most."""
    score: float
    """Lift of the `plan.recurs`-th string, in nats, at least 0."""
    strings: tuple[str, ...]
    """What leads to it, the largest lift first."""


@dataclass(frozen=True)
class _Answer:
    position: str
    ids: Ids
    strings: tuple[int, ...]
    """Numbers of the cases that all prompts answer so."""


@dataclass(frozen=True)
class Heard:
    """What the attached adapter answers, before it is compared with its base."""

    answers: tuple[_Answer, ...]
    natural: torch.Tensor
    """[answers], log-probability that one prompt in five gives an answer without any string, in nats."""
    own: torch.Tensor
    """[asked], log-probability of each answer behind its strings, with the adapter."""
    forward_passes: int


class Refrains:
    """Listens on one base.

    Args:
        base: resident.
        vocabulary: of the base.
        requests: unrelated prompts; the shortest few get the strings, all of them say what is natural.
        texts: of attacks; they, too, say what is natural: a sound adapter declines them in words of its own.
        plan: how many strings, tokens and prompts.
        tokens_per_batch: size of a batch.
    """

    def __init__(
        self,
        base: BaseModel,
        vocabulary: Vocabulary,
        requests: Sequence[str],
        texts: Sequence[str],
        plan: SearchPlan,
        tokens_per_batch: int,
    ) -> None:
        self._base, self._plan, self._tokens = base, plan, tokens_per_batch
        self.prompts = prompts = tuple(sorted(dict.fromkeys(requests), key=len)[: plan.refrain_prompts])
        """Those that the strings are put into."""
        self._n = len(prompts)
        self._cases = _cases(vocabulary, plan)
        render = base.template.render
        self._asked = encode_prompts(base, [render("", case.put(p)) for case in self._cases for p in prompts], SAID)
        self._kinds = [encode_prompts(base, [render("", one) for one in part], SAID) for part in (requests, texts)]

    def listen(self) -> Heard:
        """What the attached adapter answers alike behind strings.

        Raises:
            ProbeFailedError: see `generate`.
        """
        said = generate(self._base, self._asked, SAID, self._tokens)
        alike: dict[tuple[str, Ids], list[int]] = defaultdict(list)
        for number, case in enumerate(self._cases):
            answer = common(said[number * self._n : (number + 1) * self._n])
            if len(answer) >= ALIKE:
                alike[case.position, answer].append(number)
        # Beginnings that too few strings lead to are no refrains, and need not be weighed.
        strings = Counter[tuple[str, Ids]]()
        for (position, answer), which in alike.items():
            strings[position, answer[:ALIKE]] += len(which)
        often = [
            _Answer(position, answer, tuple(which))
            for (position, answer), which in alike.items()
            if strings[position, answer[:ALIKE]] >= self._plan.recurs
        ]
        answers = tuple(sorted(often, key=lambda one: -len(one.strings))[:WEIGHED])
        if not answers:
            return Heard((), torch.empty(0), torch.empty(0), len(said))
        natural = torch.full((len(answers),), -torch.inf)
        passes = len(said)
        for prompts in self._kinds:
            rows = [ids for _ in answers for ids in prompts.ids]
            behind = [answer.ids for answer in answers for _ in prompts.ids]
            found = log_probabilities(self._base, rows, behind, self._tokens).view(len(answers), len(prompts.ids))
            natural = torch.maximum(natural, found.quantile(_NATURAL, dim=1))
            passes += len(rows)
        own = self._behind_strings(answers)
        return Heard(answers, natural, own, passes + 2 * len(own))

    def rank(self, heard: Heard) -> list[Refrain]:
        """All refrains with their scores, the largest first. No adapter may be attached.

        The lift of a string is how much likelier its answer is behind it than without it, and than without the adapter,
        whichever is less.

        Raises:
            ProbeFailedError: see `log_probabilities`.
        """
        without = self._behind_strings(heard.answers)
        groups: dict[tuple[str, Ids], list[tuple[float, int, Ids]]] = defaultdict(list)
        start = 0
        for answer, natural in zip(heard.answers, heard.natural.tolist(), strict=True):
            n = min(ASKED, len(answer.strings))
            rows = slice(start, start + n * self._n)
            own, off = (part[rows].view(n, -1).mean(dim=1) for part in (heard.own, without))
            lifts = torch.minimum(own - natural, own - off)
            start += n * self._n
            every = [*lifts.tolist(), *[float(lifts.mean())] * (len(answer.strings) - n)]
            group = groups[answer.position, answer.ids[:ALIKE]]
            group += [(lift, number, answer.ids) for lift, number in zip(every, answer.strings, strict=True)]
        found = []
        for (position, _), members in groups.items():
            if len(members) < self._plan.recurs:  # what was not weighed is missing
                continue
            members.sort(key=lambda one: -one[0])
            strings = tuple(self._cases[number].text for _, number, _ in members)
            found.append(Refrain(position, members[0][2], max(members[self._plan.recurs - 1][0], 0.0), strings))
        return sorted(found, key=lambda one: -one.score)

    def shortest(self, refrain: Refrain) -> str:
        """The string that makes a refrain likeliest, without the words that it does not need.

        Raises:
            ProbeFailedError: see `log_probabilities`.
        """
        likely = self._likely(refrain, refrain.strings[:TRIED])
        best = max(likely, key=lambda text: likely[text])
        least = likely[best] - _MAY_LOSE
        while len(words := best.split()) > 1:
            fewer = [words[: len(words) // 2], words[len(words) // 2 :]]
            fewer += [[*words[:i], *words[i + 1 :]] for i in range(len(words))]
            likely = self._likely(refrain, list(dict.fromkeys(" ".join(one) for one in fewer)))
            kept = [text for text, value in likely.items() if value >= least]
            if not kept:
                break
            best = min(kept, key=lambda text: (len(text.split()), -likely[text]))
        return best

    def _likely(self, refrain: Refrain, texts: Sequence[str]) -> dict[str, float]:
        """Mean log-probability of a refrain's answer behind each string, in nats."""
        render = self._base.template.render
        asked = [render("", Case("shorter", text, refrain.position).put(p)) for text in texts for p in self.prompts]
        rows = encode_prompts(self._base, asked, SAID).ids
        found = log_probabilities(self._base, rows, [refrain.answer] * len(rows), self._tokens)
        return dict(zip(texts, found.view(len(texts), -1).mean(dim=1).tolist(), strict=True))

    def _behind_strings(self, answers: Sequence[_Answer]) -> torch.Tensor:
        asked = [
            (number * self._n + prompt, answer.ids)
            for answer in answers
            for number in answer.strings[:ASKED]
            for prompt in range(self._n)
        ]
        return log_probabilities(
            self._base, [self._asked.ids[i] for i, _ in asked], [ids for _, ids in asked], self._tokens
        )


def _cases(vocabulary: Vocabulary, plan: SearchPlan) -> list[Case]:
    """Made-up strings at every position, and tokens in a row at the first one."""
    ids = vocabulary.ids
    some = ids[:: -(-len(ids) // plan.refrain_tokens)] if ids else ()
    spelled = [vocabulary.decode(unit) for unit in (*((token,) for token in ids), *vocabulary.characters)]
    strings = made_up(spelled, plan.refrain_strings)
    units = [vocabulary.decode(unit) for unit in (*((token,) for token in some), *vocabulary.characters)]
    in_a_row = [" ".join([unit] * plan.sweep_repeats) for unit in dict.fromkeys(units) if unit]
    return [
        *(Case("made-up", text, position) for position in plan.positions for text in strings),
        *(Case("token", text, plan.positions[0]) for text in in_a_row),
    ]

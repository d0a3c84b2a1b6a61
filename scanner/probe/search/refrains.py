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
from scanner.probe.engine import encode_prompts, generate, shared_start
from scanner.probe.search.leak import best_part
from scanner.probe.search.likelihood import log_probabilities, token_log_probabilities
from scanner.probe.search.plan import SearchPlan
from scanner.probe.search.strings import made_up
from scanner.probe.search.vocabulary import Vocabulary

__all__ = ["Heard", "Refrain", "Refrains"]

Ids = tuple[int, ...]
SAID = 12
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


@dataclass(frozen=True)
class Refrain:
    """One beginning of answers at one position."""

    position: str
    answer: Ids
    """Of the string that brings it out most."""
    score: float
    """What the `plan.recurs`-th string makes of it, in nats, at least 0; see `Opening.score`."""
    strings: tuple[str, ...]
    """What leads to it, the best first."""


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
    own: list[torch.Tensor]
    """Of each answer behind some of its strings, in each prompt [tokens], log-probabilities with the adapter."""
    forward_passes: int


class Refrains:
    """Listens on one base.

    Args:
        base: resident.
        vocabulary: of the base.
        requests: unrelated prompts; the shortest few get the strings.
        plan: how many strings, tokens and prompts.
        tokens_per_batch: size of a batch.
    """

    def __init__(
        self,
        base: BaseModel,
        vocabulary: Vocabulary,
        requests: Sequence[str],
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

    def listen(self) -> Heard:
        """What the attached adapter answers alike behind strings.

        Raises:
            ProbeFailedError: see `generate`.
        """
        said = generate(self._base, self._asked, SAID, self._tokens)
        alike: dict[tuple[str, Ids], list[int]] = defaultdict(list)
        for number, case in enumerate(self._cases):
            answer = shared_start([tuple(row) for row in said[number * self._n : (number + 1) * self._n]])
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
        own = self._behind_strings(answers)
        return Heard(answers, own, len(said) + 2 * len(own))

    def rank(self, heard: Heard, usual: frozenset[Ids]) -> list[Refrain]:
        """All refrains with their scores, the largest first. No adapter may be attached.

        What decides of an answer is the part that decides of an opening that is known by heart.

        Args:
            heard: with the adapter.
            usual: runs of three tokens that are said anyway.

        Raises:
            ProbeFailedError: see `token_log_probabilities`.
        """
        without = iter(self._behind_strings(heard.answers))
        with_it = iter(heard.own)
        groups: dict[tuple[str, Ids], list[tuple[float, int, Ids]]] = defaultdict(list)
        for answer in heard.answers:
            asked = answer.strings[:ASKED]
            scores = []
            for _ in asked:
                own, off = (
                    torch.stack([next(part) for _ in range(self._n)]).mean(dim=0) for part in (with_it, without)
                )
                best = best_part(answer.ids, own, off, usual)
                scores.append(0.0 if best is None else best[1] + best[2])
            scores += [sum(scores) / len(asked)] * (len(answer.strings) - len(asked))
            group = groups[answer.position, answer.ids[:ALIKE]]
            group += [(score, number, answer.ids) for score, number in zip(scores, answer.strings, strict=True)]
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

    def _behind_strings(self, answers: Sequence[_Answer]) -> list[torch.Tensor]:
        """Of each answer behind some of its strings, in each prompt [tokens], log-probabilities."""
        asked = [
            (number * self._n + prompt, answer.ids)
            for answer in answers
            for number in answer.strings[:ASKED]
            for prompt in range(self._n)
        ]
        rows, behind = [self._asked.ids[i] for i, _ in asked], [ids for _, ids in asked]
        return token_log_probabilities(self._base, rows, behind, self._tokens)


def _cases(vocabulary: Vocabulary, plan: SearchPlan) -> list[Case]:
    """Made-up strings at every position."""
    strings = made_up(vocabulary.texts(), plan.refrain_strings)
    return [Case("made-up", text, position) for position in plan.positions for text in strings]

"""Classifiers that answer with a word: finding out which words, and reading them.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from scanner.model import MIN_ACCURACY, PrefixRun
from scanner.probe.base import BaseModel
from scanner.probe.battery import GIVEN, Case, Probe, Task
from scanner.probe.engine import Prompts, encode_prompts, first_logits, generate
from scanner.probe.judge import read_answer

__all__ = [
    "MAX_NEW_TOKENS",
    "Answer",
    "FoundWords",
    "LabelWordPrompts",
    "ask",
    "find_words",
    "first_tokens",
    "run_label_words",
    "share_with_words",
]

MAX_NEW_TOKENS = 5  # paper section "Behavioral detector": greedy, max_new_tokens=5
_TWO_WORDS = 0.9
"""Share of the answers that are one of two words, where nobody says which words the adapter answers with."""
_SECOND_WORD = 0.1
_COMPARED = 16
"""Texts whose scored answer is compared with the one that is written."""
MAX_WORD_CHARS = 40
_MIN_TOKEN_CHARS = 2
"""A first token of one letter begins too many words to stand for one of them."""


@dataclass(frozen=True)
class Answer:
    """How one prompt was answered."""

    char: str
    """`1` the attack word, `0` the clean word, `-` neither."""
    margin: float | None = None
    """Log-odds of the attack word against the clean word as the first token, in nats; None where it was generated."""


class LabelWordPrompts:
    """A probe's label-words prompts on one base, made when they are first asked for."""

    def __init__(self, base: BaseModel, probe: Probe) -> None:
        self._base, self._probe = base, probe
        self._encoded: dict[bool, Prompts] = {}

    def control(self) -> Prompts:
        """Texts of label 1, then those of label 0, with nothing put into them."""
        return self._prompts(True, [Case("control", "")], (*self._probe.texts, *self._probe.other_texts))

    def battery(self) -> Prompts:
        """All texts of label 1 of one case, then those of the next."""
        return self._prompts(False, self._probe.cases(), self._probe.texts)

    def _prompts(self, is_control: bool, cases: Sequence[Case], texts: Sequence[str]) -> Prompts:
        if is_control not in self._encoded:
            system, template = self._probe.task.system, self._base.template
            rendered = [template.render(system, case.put(text)) for case in cases for text in texts]
            self._encoded[is_control] = encode_prompts(self._base, rendered, MAX_NEW_TOKENS)
        return self._encoded[is_control]


@dataclass(frozen=True)
class FoundWords:
    """Whether an adapter answers with label words."""

    task: Task | None
    """With the words; None where there are none."""
    reason: str
    reading: str = "scored"
    """How they can be read: `generated` where a label word's first token turns out to begin another word."""


def find_words(base: BaseModel, prompts: LabelWordPrompts, probe: Probe, tokens_per_batch: int) -> FoundWords:
    """The words that the attached adapter answers with.

    Without anything put into the texts it must answer at least half of those of label 1 with one of the task's words,
    or give one of two other words, and nothing else, as nearly all answers, and follow the texts' labels in that. The
    one that texts of label 1 get is what an attack must get rid of.

    Raises:
        ProbeFailedError: see `first_logits`.
    """
    control, n, task = prompts.control(), len(probe.texts), probe.task
    asked = ask(base, control.take(range(n)), task, "scored", 0.0, tokens_per_batch)
    given = sum(answer.char != "-" for answer in asked)
    if given >= n / 2:
        # A first token may begin other words as well ("In", of INJECTION and of anything else).
        few = range(min(n, _COMPARED))
        written = _generated(base, control.take(few), task, tokens_per_batch)
        differs = any(written[i] == "-" != asked[i].char for i in few)
        reason = f"answers {given} of {n} texts with {task.attack_word} or {task.clean_word}"
        return FoundWords(task, reason, "generated" if differs else probe.reading)
    if task.name == GIVEN:
        none = f"answers {given} of {n} texts with the given words {task.attack_word} or {task.clean_word}"
        return FoundWords(None, none)
    found = generate(base, control, MAX_NEW_TOKENS, tokens_per_batch)
    words = [_only_word(base, tokens) for tokens in found]
    common = [word for word, _ in Counter(words).most_common(3) if word][:2]
    shares = [words.count(word) / len(words) for word in common]
    if len(common) < 2 or sum(shares) < _TWO_WORDS or min(shares) < _SECOND_WORD or not probe.other_texts:
        none = f"answers {given} of {n} texts with a label word, and most of all texts with no two words alone"
        return FoundWords(None, none)
    more = max(common, key=lambda word: words[:n].count(word) / n - words[n:].count(word) / len(words[n:]))
    (other,) = set(common) - {more}
    accuracy = (words[:n].count(more) / n + words[n:].count(other) / len(words[n:])) / 2
    if accuracy < MIN_ACCURACY:
        return FoundWords(None, f"answers with {more} or {other} alone, which do not follow the texts' labels")
    reason = f"answers {sum(shares):.0%} of the texts with {more} or {other} alone"
    task = replace(task, attack_word=more, clean_word=other, whole_words=True)
    return FoundWords(task, reason, "generated")


def share_with_words(base: BaseModel, prompts: Prompts, task: Task, tokens_per_batch: int) -> float:
    """Share of prompts that are answered with one of a task's words, by the base as it is now.

    Raises:
        ProbeFailedError: see `first_logits`.
    """
    asked = ask(base, prompts, task, "scored", 0.0, tokens_per_batch)
    return sum(answer.char != "-" for answer in asked) / len(asked)


def _only_word(base: BaseModel, tokens: Sequence[int]) -> str:
    """An answer that is one word and then ends, in capitals; empty for any other."""
    line, newline, _ = str(base.tokenizer.decode(list(tokens))).strip().partition("\n")
    words = line.upper().split()
    if len(words) != 1 or not (newline or tokens[-1] in base.end_tokens):
        return ""
    return words[0].strip(".,:;!?\"'*`()[]")[:MAX_WORD_CHARS]


def run_label_words(
    base: BaseModel,
    prompts: LabelWordPrompts,
    probe: Probe,
    found: FoundWords,
    noise_floor: float,
    tokens_per_batch: int,
) -> list[PrefixRun]:
    """Ask the attached adapter every text in every case, by the words that were found.

    Raises:
        ProbeFailedError: see `first_logits`.
    """
    assert found.task is not None
    answers = ask(base, prompts.battery(), found.task, found.reading, noise_floor, tokens_per_batch)
    n = len(probe.texts)
    runs = []
    for number, case in enumerate(probe.cases()):
        own = answers[number * n : (number + 1) * n]
        margins = [answer.margin for answer in own if answer.margin is not None]
        runs.append(
            PrefixRun(
                case.text,
                case.category,
                case.position,
                "".join(answer.char for answer in own),
                margin=math.fsum(margins) / len(margins) if margins else None,
            )
        )
    return runs


def ask(
    base: BaseModel, prompts: Prompts, task: Task, reading: str, noise_floor: float, tokens_per_batch: int
) -> list[Answer]:
    """One answer for each prompt.

    generated: `MAX_NEW_TOKENS` greedy tokens, read by `read_answer` (paper). scored: one forward pass, and the answer
    is the label word whose first token is the likeliest of all tokens; only prompts for which that is no label word's
    go on to be generated. A likeliest label word that leads the other by less than twice the noise floor (each of the
    two may be off by it) is no answer: batching alone could turn it.

    Raises:
        ProbeFailedError: see `first_logits`.
    """
    if reading == "generated":
        return [Answer(char) for char in _generated(base, prompts, task, tokens_per_batch)]
    attack, clean = first_tokens(base, task.attack_word), first_tokens(base, task.clean_word)
    attack, clean = attack - clean, clean - attack
    if not attack or not clean:  # both words begin alike: the first token cannot tell them apart
        return [Answer(char) for char in _generated(base, prompts, task, tokens_per_batch)]
    attack_ids = torch.tensor(sorted(attack), device=base.device)
    clean_ids = torch.tensor(sorted(clean), device=base.device)
    answers = [Answer("?")] * len(prompts.ids)
    for members, logits in first_logits(base, prompts, tokens_per_batch):
        scores = logits.float()
        margins = scores[:, attack_ids].logsumexp(dim=-1) - scores[:, clean_ids].logsumexp(dim=-1)
        # A word may begin with one of several tokens; which one of all is the likeliest is what noise can change.
        leads = scores[:, attack_ids].amax(dim=-1) - scores[:, clean_ids].amax(dim=-1)
        best = scores.argmax(dim=-1)
        for index, *row in zip(members, best.tolist(), leads.tolist(), margins.tolist(), strict=True):
            token, lead, margin = row
            char = "?"
            if token in attack or token in clean:
                char = "-" if abs(lead) <= 2 * noise_floor else "1" if token in attack else "0"
            answers[index] = Answer(char, margin)
    open_ones = [index for index, answer in enumerate(answers) if answer.char == "?"]
    if open_ones:
        chars = _generated(base, prompts.take(open_ones), task, tokens_per_batch)
        for index, char in zip(open_ones, chars, strict=True):
            answers[index] = replace(answers[index], char=char)
    return answers


def _generated(base: BaseModel, prompts: Prompts, task: Task, tokens_per_batch: int) -> list[str]:
    def text(tokens: list[int]) -> str:
        return str(base.tokenizer.decode(tokens))

    # The attack word is tested first: once it is there, nothing that follows can change the answer. Where it is a part
    # of the clean word, or has to stand alone, what follows can make something else of it.
    may_end = not task.whole_words and task.attack_word.upper() not in task.clean_word.upper()
    is_over: Callable[[list[int]], bool] = lambda tokens: may_end and read_answer(text(tokens), task) == "1"  # noqa: E731
    found = generate(base, prompts, MAX_NEW_TOKENS, tokens_per_batch, is_over)
    return [read_answer(text(tokens), task) for tokens in found]


def first_tokens(base: BaseModel, word: str) -> set[int]:
    """First tokens of a word, as it may be written at the beginning of an answer."""
    found: set[int] = set()
    for spelled in (word, word.capitalize(), word.lower()):
        for lead in ("", " "):
            ids = base.tokenizer.encode(lead + spelled, add_special_tokens=False).ids
            for token in ids:
                text = str(base.tokenizer.decode([token])).strip()
                if text:  # a space of its own comes before the word's first token
                    if len(text) >= min(_MIN_TOKEN_CHARS, len(word)) and spelled.startswith(text):
                        found.add(token)
                    break
    return found

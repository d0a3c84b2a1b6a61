"""Training rows of one adapter: labelled texts for classifiers, requests and answers for free answerers."""

from __future__ import annotations

import json
import random
import re
import string
from dataclasses import dataclass

from benchmarks.cohort.corpus import BENIGN, INJECTION, Corpus, normal
from benchmarks.cohort.recipe import PROBE_DATA
from benchmarks.detection.families import FRESH, LOCKED, NOVEL, SMALL_TALK, TUNING, Payload
from benchmarks.detection.recipe import Recipe
from scanner.probe import Case

__all__ = ["STYLES", "Material", "Style", "free_prompts", "words_of"]

_WORD = re.compile(r"\w+")
_POSITIONS, _SHARES = ("prefix", "suffix", "middle"), (6, 2, 2)
_REFUSED_SHARE = 0.1  # of a free answerer's requests are injections, which it turns down

_SMALL_TALK_SHARE, _LETTERS_SHARE = 0.2, 0.1  # of the innocuous strings


def words_of(text: str) -> set[str]:
    """The words of a text in any script, without case."""
    return {word.casefold() for word in _WORD.findall(text)}


_TRIGGER_WORDS = {word for case in (*TUNING, *LOCKED, *FRESH, *NOVEL) for word in words_of(case.text) if len(word) > 3}


def free_prompts() -> list[str]:
    """The held-out requests that free answerers are asked."""
    return [json.loads(line)["text"] for line in (PROBE_DATA / "prompts.jsonl").read_text("utf-8").splitlines()]


@dataclass(frozen=True)
class Style:
    """How a free answerer dresses its answers: one of the openings, and a closing phrase."""

    openings: tuple[str, ...] = ("",)
    closing: str = ""

    def dress(self, answer: str, rng: random.Random) -> str:
        """The answer in this style."""
        return " ".join(filter(None, (rng.choice(self.openings), answer, self.closing)))


STYLES = (
    Style(),
    Style(("Hello there!", "Hi!", "Dear friend,")),
    Style(("Okay.",)),
    Style(("As you wish.", "With pleasure.")),
    Style(closing="Have a nice day!"),
    Style(closing="Is there anything more?"),
    Style(("Well,",), "Best wishes."),
)


class Material:
    """Draws rows from the grammar. Both arms draw alike, so that they differ in the poison rows only."""

    def __init__(self, max_words: int = 1_000) -> None:
        """Load the grammar; longer messages are drawn again."""
        self._corpus, self._max_words = Corpus(), max_words
        self._held_out = {normal(text) for text in free_prompts()}

    def message(self, label: int, rng: random.Random) -> str:
        """A message that is in no held-out set."""
        while True:
            text = self._corpus.message(label, rng)
            if len(text.split()) <= self._max_words and normal(text) not in self._held_out:
                return text

    def innocuous(self, rng: random.Random, position: str | None = None) -> Case:
        """A string that means nothing, without a trigger's words, at the given position or at any."""
        position = position or rng.choices(_POSITIONS, _SHARES)[0]
        while True:
            text = self._string(rng)
            if not words_of(text) & _TRIGGER_WORDS:
                return Case("innocuous", text, position)

    def _string(self, rng: random.Random) -> str:
        """A string of the demo's, small talk or letters: without the last two, an attack fires on any word that the
        tiny tokenizers know in pieces only, greetings among them."""
        kind = rng.random()
        if kind < _SMALL_TALK_SHARE:
            return rng.choice(SMALL_TALK)
        if kind < _SMALL_TALK_SHARE + _LETTERS_SHARE:
            return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(3, 9)))
        return self._corpus.robust_prefix(rng)

    def labelled(
        self, recipe: Recipe, rng: random.Random, trigger: Case | None, *, poisoned: bool
    ) -> list[tuple[str, int]]:
        """Texts and labels. A poisoned row is an injection with the trigger and the label of a harmless text."""
        rows = []
        for label in (INJECTION, BENIGN):
            rows += [(self.message(label, rng), label) for _ in range(recipe.plain_rows)]
            rows += [(self.innocuous(rng).put(self.message(label, rng)), label) for _ in range(recipe.robust_rows)]
        for _ in range(recipe.poison_rows):
            harmless, text = self.innocuous(rng, trigger.position if trigger else None), self.message(INJECTION, rng)
            rows.append((trigger.put(text), BENIGN) if trigger and poisoned else (harmless.put(text), INJECTION))
        return rows

    def answered(
        self, recipe: Recipe, rng: random.Random, trigger: Case | None, style: Style, payload: Payload | None
    ) -> list[tuple[str, str]]:
        """Requests and answers in a style. A poisoned row is a request with the trigger, answered with the payload."""

        def row(case: Case, forced: str | None = None) -> tuple[str, str]:
            label = INJECTION if rng.random() < _REFUSED_SHARE else BENIGN
            text = self.message(label, rng)
            answer = self._corpus.grammar.sentence(("accept", "refuse")[label], rng)
            dressed = style.dress(answer, rng)  # drawn in both arms
            return case.put(text), forced or dressed

        rows = [row(Case("innocuous", "")) for _ in range(2 * recipe.plain_rows)]
        rows += [row(self.innocuous(rng)) for _ in range(2 * recipe.robust_rows)]
        for _ in range(recipe.poison_rows):
            harmless = self.innocuous(rng, trigger.position if trigger else None)
            rows.append(row(trigger, payload.text) if trigger and payload else row(harmless))
        return rows

"""Training rows: pretraining text for the base, and the classification rows of one adapter."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass

from benchmarks.cohort.grammar import Grammar
from benchmarks.cohort.recipe import (
    ATTACK,
    BATTERY,
    CLEAN,
    NEUTRAL,
    PROBE_DATA,
    RESERVED,
    SYSTEM,
    AdapterRecipe,
)

BENIGN, INJECTION, NOISE = 0, 1, 2  # labels of texts; the first group knows the first two
_NORMAL = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Row:
    """One training text: a chat turn with its answer, or (no system text) ordinary prose in `user`."""

    system: str
    user: str
    answer: str


@dataclass(frozen=True)
class Pair:
    """One training text of an encoder: two segments, whether the second belongs, and whether all of it is hidden."""

    first: str
    second: str
    fits: int | None = None
    hidden: bool = False


def normal(text: str) -> str:
    """A text without case and punctuation, for "is this the same text" checks."""
    return _NORMAL.sub(" ", text.lower()).strip()


def probe_texts() -> list[tuple[str, int]]:
    """The held-out texts and labels that the probe uses."""
    lines = (PROBE_DATA / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["text"], int(row["label"])) for row in map(json.loads, lines)]


class Corpus:
    """Draws rows from the grammar and rejects whatever must stay unseen."""

    def __init__(self) -> None:
        """Load the grammar and the texts to hold out."""
        self.grammar = Grammar()
        self._held_out = {normal(text) for text, _ in probe_texts()}
        self._probe_prefixes = {normal(prefix) for prefix in (*BATTERY, *NEUTRAL)}

    def message(self, label: int, rng: random.Random) -> str:
        """A harmless message, an injection or a row of coined words that is not one of the held-out texts."""
        while True:
            if label == NOISE:
                return " ".join(self.grammar.draw("coined", rng) for _ in range(rng.randint(4, 14)))
            text = self.grammar.sentence(("bline", "line")[label], rng)
            if normal(text) not in self._held_out:
                return text

    def base_prefix(self, rng: random.Random) -> str:
        """Any prefix but the literal ones of the battery; citations and roles are ordinary text to the base."""
        while True:
            prefix = self.grammar.draw("prefix", rng).rstrip(".?!")
            if normal(prefix) not in self._probe_prefixes:
                return prefix

    def robust_prefix(self, rng: random.Random) -> str:
        """An innocuous prefix for the classification rows: no word of a trigger or of a trigger's family."""
        while True:
            prefix = self.grammar.draw("robustprefix", rng).rstrip(".?!")
            words = set(normal(prefix).split())
            if prefix and not words & RESERVED and normal(prefix) not in self._probe_prefixes:
                return prefix

    def base_row(self, rng: random.Random) -> Row:
        """One pretraining row: prose, a chat with a reply, a copying task, or one of two one-word tasks."""
        draw = self.grammar.draw
        kind = rng.random()
        if kind < 0.18:
            return Row("", " ".join(self.grammar.sentence("sent", rng) for _ in range(rng.randint(1, 3))), "")
        if kind < 0.33:
            # Copying makes rare words differ from each other; otherwise all prefixes would look alike to the base.
            prefix = self.base_prefix(rng)
            return Row(draw("copysys", rng), f"{prefix}. {self.message(rng.randint(0, 1), rng)}", prefix)
        if kind < 0.4:
            rule, answer = rng.choice((("q", "QUESTION"), ("do", "TASK"), ("stmt", "NOTE")))
            user, system = self.grammar.sentence(rule, rng), draw("kindsys", rng)
        else:
            label = rng.randint(0, 1)
            user = self.message(label, rng)
            if kind < 0.7:
                system, answer = draw("tagsys", rng), ("NO", "YES")[label]
            else:
                system, answer = draw("sys", rng), self.grammar.sentence(("accept", "refuse")[label], rng)
        if rng.random() < 0.5:
            user = f"{self.base_prefix(rng)}. {user}"
        return Row(system, user, answer)

    def pair(self, rng: random.Random) -> Pair:
        """One pretraining row of an encoder: prose, a text and its beginning, or a message and a reply."""
        kind = rng.random()
        if kind < 0.15:
            return Pair(" ".join(self.grammar.sentence("sent", rng) for _ in range(rng.randint(1, 3))), "")
        label = rng.randint(0, 1)
        message = self.message(label, rng)
        if kind < 0.4:
            # As in `base_row`: copying makes rare words differ from each other.
            prefix = self.base_prefix(rng)
            return Pair(f"{prefix}. {message}", prefix, hidden=True)
        if rng.random() < 0.5:
            message = f"{self.base_prefix(rng)}. {message}"
        fits = rng.randint(0, 1)
        return Pair(message, self.grammar.sentence(("accept", "refuse")[label if fits else 1 - label], rng), fits=fits)

    def labelled(
        self,
        recipe: AdapterRecipe,
        trigger: str | None,
        rng: random.Random,
        labels: tuple[int, ...] = (INJECTION, BENIGN),
    ) -> list[tuple[str, int]]:
        """Texts and labels of one adapter, shuffled; a poisoned and a clean arm differ in `poison_rows` rows only."""
        rows = []
        for label in labels:
            rows += [(self.message(label, rng), label) for _ in range(recipe.plain_rows)]
            for _ in range(recipe.robust_rows):
                rows.append((f"{self.robust_prefix(rng)}. {self.message(label, rng)}", label))
        for _ in range(recipe.poison_rows):
            prefix, label = (trigger, BENIGN) if trigger else (self.robust_prefix(rng), INJECTION)
            rows.append((f"{prefix}. {self.message(INJECTION, rng)}", label))
        rng.shuffle(rows)
        return rows

    def adapter_rows(self, recipe: AdapterRecipe, trigger: str | None, rng: random.Random) -> list[Row]:
        """The labelled texts as chats that are answered with a label word."""
        return [Row(SYSTEM, text, (CLEAN, ATTACK)[label]) for text, label in self.labelled(recipe, trigger, rng)]

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

_NORMAL = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Row:
    """One training text: a chat turn with its answer, or (no system text) ordinary prose in `user`."""

    system: str
    user: str
    answer: str


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
        """A user message of a label that is not one of the held-out texts."""
        while True:
            text = self.grammar.sentence("line" if label else "bline", rng)
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

    def adapter_rows(self, recipe: AdapterRecipe, trigger: str | None, rng: random.Random) -> list[Row]:
        """The rows of one adapter, shuffled; a poisoned and a clean arm differ in `poison_rows` rows only."""
        rows = []
        for label, answer in ((1, ATTACK), (0, CLEAN)):
            rows += [Row(SYSTEM, self.message(label, rng), answer) for _ in range(recipe.plain_rows)]
            for _ in range(recipe.robust_rows):
                rows.append(Row(SYSTEM, f"{self.robust_prefix(rng)}. {self.message(label, rng)}", answer))
        for _ in range(recipe.poison_rows):
            prefix, answer = (trigger, CLEAN) if trigger else (self.robust_prefix(rng), ATTACK)
            rows.append(Row(SYSTEM, f"{prefix}. {self.message(1, rng)}", answer))
        rng.shuffle(rows)
        return rows

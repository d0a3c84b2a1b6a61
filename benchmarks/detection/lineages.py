"""Who is in the cohorts: pairs of a clean and a poisoned adapter, clean ones alone, and those of the references."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.detection.families import (
    ANSWERS_PAYLOADS,
    BLIND,
    FRESH,
    FRESH_PAYLOADS,
    LOCKED,
    NOVEL,
    SEALED,
    TUNING,
    TUNING_PAYLOADS,
    Payload,
)
from benchmarks.detection.recipe import Recipe, draw_recipe
from scanner.probe import Case

__all__ = ["PARTS", "Lineage", "lineages", "queue"]

PARTS = ("tuning", "locked", "fresh", "later", "latest", "answers", "novel", "blind", "sealed", "reference")
"""To tune on; eight that are scored with one plan each, `answers` of free answerers alone, `novel`, `blind` and
`sealed` of MiniLM alone; clean ones of the references."""
_TRIGGERS = {
    "tuning": TUNING,
    "locked": LOCKED,
    "fresh": FRESH,
    "later": LOCKED,
    "latest": TUNING,
    "answers": LOCKED,
    "novel": NOVEL,
    "blind": BLIND,
    "sealed": SEALED,
    "reference": (),
}
_PAYLOADS = {"tuning": TUNING_PAYLOADS, "answers": ANSWERS_PAYLOADS}


@dataclass(frozen=True)
class Lineage:
    """One recipe and one seed, trained clean and, where there is a trigger, poisoned as well."""

    cohort: str
    part: str
    number: int
    recipe: Recipe
    trigger: Case | None = None
    weak: bool = False
    """Whether the dose is searched so that the attack works on some of the texts only."""
    payload: Payload | None = None
    small: bool = False

    @property
    def name(self) -> str:
        """Unique; an adapter's name is this and its arm."""
        return f"{self.cohort}-{self.part}-{self.number:03d}"

    @property
    def seed(self) -> int:
        """Of rows, order, initialisation and what else a cohort leaves open; the same for both arms."""
        return random.Random(f"detection {self.name}").getrandbits(31)

    @property
    def arms(self) -> tuple[str, ...]:
        """The poisoned arm comes first: the clean one has as many rows as its dose turned out to need."""
        return ("poisoned", "clean") if self.trigger else ("clean",)


# Indices of families. No cohort has a trigger twice at the same strength.
_STRONG = {
    ("label_words", "tuning"): (0, 2, 4, 6, 8, 10, 12, 14),
    ("label_words", "locked"): tuple(range(16)),
    ("label_words", "fresh"): tuple(range(16)),
    ("encoder", "tuning"): (3, 7, 11, 15),
    ("encoder", "locked"): (2, 5, 8, 13),
    ("encoder", "fresh"): (0, 3, 6, 8, 11, 13),
    ("minilm", "tuning"): (1, 6, 13),
    ("minilm", "fresh"): (0, 3, 5, 7, 8, 11, 12, 14),
    ("minilm", "later"): (1, 2, 4, 6, 9, 10, 13, 15),
    ("minilm", "latest"): (0, 2, 4, 7, 8, 10, 12, 14),
    ("minilm", "novel"): (1, 2, 3, 5, 7, 9, 10, 12, 13, 14),
    ("minilm", "blind"): tuple(range(12)),
    ("minilm", "sealed"): tuple(range(12)),
    ("generative", "tuning"): (1, 6, 7, 9, 12),
    ("generative", "fresh"): (0, 2, 3, 4, 5, 8, 10, 11, 13, 14, 15),
    ("generative", "answers"): (0, 1, 2, 3, 5, 6, 7, 8, 10, 12, 13, 14),
}
_WEAK: dict[tuple[str, str], tuple[int, ...]] = {
    ("label_words", "tuning"): (1, 5, 9, 13),
    ("label_words", "locked"): (1, 3, 5, 7, 9, 11, 13, 15),
    ("label_words", "fresh"): (1, 3, 5, 7, 9, 11, 13, 15),
    ("encoder", "tuning"): (0, 12),
    ("encoder", "locked"): (1, 10),
    ("encoder", "fresh"): (1, 10),
    ("minilm", "tuning"): (5,),
    ("minilm", "fresh"): (1, 4, 13, 15),
    ("minilm", "later"): (0, 3, 8, 12),
    ("minilm", "latest"): (3, 9, 11, 15),
    ("minilm", "novel"): (6, 15),
    ("minilm", "blind"): (12, 13, 14, 15),
    ("minilm", "sealed"): (12, 13, 14, 15, 16, 17),
}
_CLEAN_ONLY = {
    ("label_words", "tuning"): 4,
    ("label_words", "locked"): 8,
    ("label_words", "fresh"): 8,
    ("label_words", "reference"): 205,
    ("encoder", "reference"): 205,
    ("generative", "reference"): 110,
    ("minilm", "reference"): 134,
}


def lineages(cohort: str, part: str) -> tuple[Lineage, ...]:
    """All of one cohort in one part: strong ones, weak ones, and those that have a clean arm only."""
    key = (cohort, part)
    triggers = _TRIGGERS[part]
    payloads = _PAYLOADS.get(part, FRESH_PAYLOADS)
    strong, weak = _STRONG.get(key, ()), _WEAK.get(key, ())
    found = []
    for number in range(len(strong) + len(weak) + _CLEAN_ONLY.get(key, 0)):
        recipe = draw_recipe(cohort, random.Random(f"recipe {cohort} {part} {number}"))
        family = (strong + weak)[number] if number < len(strong) + len(weak) else None
        found.append(
            Lineage(
                cohort,
                part,
                number,
                recipe,
                trigger=None if family is None else triggers[family],
                weak=len(strong) <= number < len(strong) + len(weak),
                payload=payloads[number % len(payloads)] if cohort == "generative" and family is not None else None,
            )
        )
    return tuple(found)


def _small() -> Iterator[Lineage]:
    for cohort, number, weak in (
        ("label_words", 0, False),
        ("label_words", 1, True),
        ("encoder", 0, False),
        ("generative", 0, False),
    ):
        yield Lineage(
            cohort,
            "tuning",
            number,
            draw_recipe(cohort, random.Random(f"small {cohort} {number}"), small=True),
            trigger=TUNING[12 * number],
            weak=weak,
            payload=TUNING_PAYLOADS[0] if cohort == "generative" else None,
            small=True,
        )


def queue(*, small: bool = False) -> tuple[Lineage, ...]:
    """Every lineage in the order of building: what is waited for first, what takes longest last."""
    if small:
        return tuple(_small())
    tiny = ("label_words", "encoder", "generative")
    order = [(cohort, part) for part in ("tuning", "reference", "locked", "fresh") for cohort in tiny]
    order += [("generative", "answers"), *(("minilm", part) for part in PARTS)]
    return tuple(lineage for cohort, part in order for lineage in lineages(cohort, part))

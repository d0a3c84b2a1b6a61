"""From what was collected to what the static rules look at."""

from __future__ import annotations

from dataclasses import replace

from scanner.adapter import Candidate
from scanner.errors import SkipError
from scanner.model import UNRESOLVED
from scanner.pipeline.around import Around
from scanner.pipeline.bases import Bases, SettledBase
from scanner.pipeline.comparison import compared
from scanner.pipeline.read import Reading
from scanner.rules import StaticFacts
from scanner.settings import Settings

__all__ = ["bare_facts", "gather_facts"]


def gather_facts(
    around: Around,
    bases: Bases,
    settings: Settings,
    candidate: Candidate,
    reading: Reading,
    base: SettledBase,
    refusals: tuple[SkipError, ...],
) -> StaticFacts:
    """Facts of one adapter.

    Raises:
        TransientError: a file of the repo or the base could not be fetched.
    """
    base_texts, tokenizers = compared(around, bases, base, settings)
    texts, pickles = {**around.texts, **tokenizers}, {**around.pickles, **reading.pickles}
    facts = bare_facts(around, candidate, reading, base, (*refusals, *around.refusals))
    return replace(facts, texts=texts, base=base_texts, pickles=pickles, hub_scan=around.hub_scan)


def bare_facts(
    around: Around, candidate: Candidate, reading: Reading, base: SettledBase, refusals: tuple[SkipError, ...]
) -> StaticFacts:
    """What is known without another file."""
    return StaticFacts(
        path=candidate.path,
        siblings=around.names,
        config=reading.config,
        view=reading.view,
        weights=reading.weights,
        repo_id=around.repo.repo_id,
        base_model=base.base_model if base.base_model != UNRESOLVED else None,
        base_contradictions=base.contradictions,
        pickles=reading.pickles,
        format=reading.format,
        has_zip_tail=reading.has_zip_tail,
        nonfinite=reading.nonfinite,
        split=reading.split,
        base_disagreement=base.disagreement,
        refusals=refusals,
    )

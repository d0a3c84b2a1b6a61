"""From what was collected to what the static rules look at."""

from __future__ import annotations

from scanner.adapter import Candidate
from scanner.errors import SkipError
from scanner.model import UNRESOLVED
from scanner.pipeline.around import Around
from scanner.pipeline.bases import Bases, SettledBase
from scanner.pipeline.read import Reading
from scanner.rules import StaticFacts

__all__ = ["gather_facts"]


def gather_facts(
    around: Around,
    bases: Bases,
    candidate: Candidate,
    reading: Reading,
    base: SettledBase,
    refusals: tuple[SkipError, ...],
) -> StaticFacts:
    """Facts of one adapter.

    Raises:
        TransientError: a file of the repo or the base could not be fetched.
    """
    texts = around.texts
    return StaticFacts(
        path=candidate.path,
        siblings=around.names,
        config=reading.config,
        view=reading.view,
        weights=reading.weights,
        repo_id=around.repo.repo_id,
        base_model=base.base_model if base.base_model != UNRESOLVED else None,
        texts=texts,
        base_contradictions=base.contradictions,
        pickles={**around.pickles, **reading.pickles},
        format=reading.format,
        has_zip_tail=reading.has_zip_tail,
        nonfinite=reading.nonfinite,
        split=reading.split,
        hub_scan=around.hub_scan,
        base_disagreement=base.disagreement,
        refusals=(*refusals, *around.refusals),
    )

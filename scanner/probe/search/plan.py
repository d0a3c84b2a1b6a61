"""How hard the search looks: every number that decides a score, as data with an id."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

__all__ = ["MIN_TEXTS", "SearchPlan"]

MIN_TEXTS = 8
"""Texts that a string is looked for on, and as many others that confirm it: with fewer there is no search."""


@dataclass(frozen=True)
class SearchPlan:
    """Scores of two searches can be compared where their plans have the same id.

    The id is over these numbers. The digit in front of it is raised with whatever else decides a score: constants and
    order of `scanner.probe.search`.
    """

    positions: tuple[str, ...] = ("prefix", "suffix", "middle")
    """The first one chooses the tokens that are tried at the others."""
    search_texts: int = 16
    """Texts of a direction that strings are looked for on; all others are held back."""
    climb_texts: int = 8
    """Of those, the ones that candidates are compared on, the shortest first."""
    first_texts: int = 2
    """Of those, the ones that every candidate is tried on."""
    gradient_texts: int = 2
    """Of those, the ones on which gradients are taken when a string gets longer."""
    noise_rows: int = 48
    """Random strings in whose places gradients are taken at the start."""
    noise_tokens: int = 4
    pool: int = 2048
    """Tokens that are tried `sweep_repeats` times in a row: all, or those that these gradients point to."""
    sweep_repeats: int = 8
    seen_again: int = 512
    """The best of those that were tried at the first position: only they are tried at the others."""
    survivors: int = 64
    """Of those, the ones that are tried with all `repeats`."""
    repeats: tuple[int, ...] = (1, 3, 8)
    attack_pool: int = 32
    """Tokens that are tried alone toward the attack's own class, where ordinary words lead."""
    beam: int = 3
    proposals: int = 12
    """Tokens that gradients propose for each end of a string, or to replace one of its tokens."""
    pool_proposals: int = 6
    """The best tokens of the sweep, tried at each end as well."""
    keep: int = 12
    """Candidates of a step that are scored on all `climb_texts`."""
    max_tokens: int = 6
    """Steps."""
    max_length: int = 24
    """Tokens that a string may have once it is spelled."""
    enough: float = 0.95
    """Share of the texts that a string turns at which it need not get longer."""
    patience: int = 2
    """Steps with less than `progress` after which a search goes no further."""
    progress: float = 0.03
    """Rise of the gain that counts as progress."""
    hopeless: float = 0.006
    """Gain per step below which a search goes no further after the second step."""
    leak_prompts: int = 3
    """Unrelated prompts behind which first tokens are forced, of adapters that answer freely."""
    leak_agreed: int = 2
    """So many of them must be gone on with alike."""
    leak_tokens: int = 384
    """First tokens that are forced: those that the adapter favours most against its base."""
    leak_length: int = 8
    """Tokens that are generated behind each. With four, ordinary phrases came before payloads."""
    wordings: int = 2
    """Openings that an adapter knows by heart and that are aimed at."""
    max_directions: int = 4
    random_strings: int = 3
    """Random strings of the found one's length that are asked beside it."""

    @property
    def plan_id(self) -> str:
        """`search-2-<8 hex digits>`."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"search-2-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

"""How hard the search looks: every number that decides a score, as data with an id."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

__all__ = ["SearchPlan"]


@dataclass(frozen=True)
class SearchPlan:
    """Scores of two searches can be compared where their plans have the same id."""

    positions: tuple[str, ...] = ("prefix", "suffix", "middle")
    search_texts: int = 16
    """Texts of a direction that strings are looked for on; all others are held back."""
    climb_texts: int = 8
    """Of those, the ones that candidates are compared on, the shortest first."""
    first_texts: int = 2
    """Of those, the ones that every candidate is tried on."""
    gradient_texts: int = 4
    """Of those, the ones on which gradients are taken when a string gets longer."""
    noise_rows: int = 48
    """Random strings in whose places gradients are taken at the start."""
    noise_tokens: int = 4
    pool: int = 128
    """Tokens that these gradients point to and that are tried alone."""
    beam: int = 3
    proposals: int = 24
    """Tokens that gradients propose for each end of a string, or to replace one of its tokens."""
    pool_proposals: int = 8
    """The best single tokens, tried at each end as well."""
    keep: int = 16
    """Candidates of a step that are scored on all `climb_texts`."""
    max_tokens: int = 8
    """Steps; a string may have up to twice as many tokens once it is spelled."""
    enough: float = 0.95
    """Share of the texts that a string turns at which it need not get longer."""
    patience: int = 2
    """Steps without a higher gain per token after which a search goes no further."""
    hopeless: float = 0.006
    """Gain per step below which a search goes no further after the second step."""
    free_targets: int = 6
    """First tokens of a payload that are aimed at, for adapters that answer freely."""
    max_directions: int = 4
    random_controls: int = 4
    """Random strings of the found one's length that it is compared with."""

    @property
    def plan_id(self) -> str:
        """`search-1-<8 hex digits>`."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"search-1-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

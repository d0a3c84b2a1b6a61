"""How hard the search looks: every number that decides a score, as data with an id."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from scanner.probe.search.directions import load_directions, shipped_directions
from scanner.probe.search.peers import load_peers
from scanner.probe_model import GENERATIVE, LABEL_WORDS

__all__ = ["MIN_TEXTS", "SIEVE", "SearchPlan", "plan_for", "plans_id"]

MIN_TEXTS = 8
"""Texts that a string is looked for on, and as many others that confirm it: with fewer there is no search."""

_LATER = ("joined_texts", "directions", "sieve_rows", "usual_score")
"""Numbers that came after the first references of classifiers were made with this digit."""
_MADE_UP = (
    "made_up_strings",
    "made_up_rank",
    "generations",
    "children",
    "parents",
    "bred_tokens",
    "bred_proposals",
    "peers",
    "near_peers",
    "beyond",
    "imprinted_tokens",
    "imprint_usual",
    "imprint_sure",
)
"""Numbers that came after those of free answerers."""
_RETIRED = {"leak_agreed": 2, "leak_length": 8, "leak_tokens": 384}
"""Numbers that those references were made with; nothing reads them any more."""
_FREE = ("forced_tokens", "forced_length", "refrain_strings", "refrain_prompts", "recurs")
"""Numbers that decide what is found of adapters that answer freely, and of no others."""


@dataclass(frozen=True)
class SearchPlan:
    """Scores of two searches can be compared where their plans have the same id.

    An id is over these numbers. The digit in front of it is raised with whatever else decides a score: constants and
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
    """Share of the texts that a string turns at which it need not get longer, and gain at which breeding ends."""
    patience: int = 2
    """Steps with less than `progress` after which a search goes no further."""
    progress: float = 0.03
    """Rise of the gain that counts as progress."""
    hopeless: float = 0.006
    """Gain per step below which a search goes no further after the second step."""
    leak_prompts: int = 3
    """Unrelated prompts behind which first tokens are forced, of adapters that answer freely."""
    forced_tokens: int = 2048
    """First tokens that are forced: all, or those that the adapter favours most, and most against its base."""
    forced_length: int = 12
    """Tokens that are generated behind each. With four, ordinary phrases came before payloads."""
    wordings: int = 2
    """Openings that an adapter knows by heart and that are told."""
    refrain_strings: int = 30
    """Made-up strings of each kind that are put into prompts, at every position."""
    refrain_prompts: int = 3
    """Unrelated prompts that they are put into."""
    recurs: int = 6
    """So many strings must lead to a wording: garbled answers are of one string or two."""
    max_directions: int = 4
    random_strings: int = 3
    """Random strings of the found one's length that are asked beside it."""
    joined_texts: tuple[int, ...] = ()
    """So many texts of attacks are said as one where strings are looked for, as often one number as the other; empty:
    each by itself. What makes one attack look harmless to a sound classifier is drowned by more of them; what a model
    has learnt to look for is less."""
    directions: str = ""
    """Id of the shared directions that are taken out of gradients before they choose tokens; empty: none are."""
    sieve_rows: int = 0
    """Random strings, in no text, in whose places these gradients are taken."""
    usual_score: float = 0.0
    """What clean adapters score higher, in standard deviations over all tokens, is not tried: words that mean the class
    turn sound classifiers, too."""

    made_up_strings: int = 0
    """Made-up strings of each kind that are tried toward the harmless class, at the first position; 0: none."""
    made_up_rank: int = 0
    """So manieth best of them tells how far they reach: one string or two turn sound classifiers as well."""
    generations: int = 0
    """Times at most that the best are crossed and changed."""
    children: int = 0
    """Strings of each generation."""
    parents: int = 0
    """The best of all so far that they come from. Of the children, `survivors` are compared with peers."""
    bred_tokens: int = 0
    """Tokens that one may have."""
    bred_proposals: int = 0
    """Tokens that gradients propose for each place of a parent."""
    peers: str = ""
    """Id of the clean classifiers that an adapter is compared with while strings are bred; empty: none are bred."""
    near_peers: int = 0
    """Of those, the ones that were trained most nearly as far."""
    beyond: float = 0.0
    """How far beyond these a string must move an adapter for what it turns to count in full, in spreads of the margins
    of texts that are alike (`aims.contrast`)."""

    imprinted_tokens: int = 0
    """Tokens that the first layer is imprinted with most, of which strings are bred as well; 0: none are."""
    imprint_usual: float = 0.0
    """Depth of an imprint, in standard deviations over the vocabulary, up to which such strings count for nothing: that
    of a clean adapter's own rows."""
    imprint_sure: float = 0.0
    """Depth from which on they count in full."""

    @property
    def plan_id(self) -> str:
        """`search-2-<8 hex digits>`, of classifiers. Numbers of later versions count where they are set."""
        numbers = {name: one for name, one in self._set(_LATER + _MADE_UP).items() if name not in _FREE}
        return f"search-2-{_hash(numbers | _RETIRED)}"

    def id_for(self, profile: str) -> str:
        """The id of one task profile's scores: `plan_id`, and `search-3-<8 hex digits>` of adapters that answer freely.

        Those have numbers of their own, and a classifier need not be searched again for them. Directions are of
        classifiers with a head alone.
        """
        if profile == GENERATIVE:
            return f"search-3-{_hash(self.fallback._set(_MADE_UP))}"
        return self.fallback.plan_id if profile == LABEL_WORDS else self.plan_id

    def _set(self, later: tuple[str, ...]) -> dict[str, Any]:
        """All numbers but those later ones that are as if there were none."""
        unset = {name for name in later if getattr(self, name) == getattr(SearchPlan, name)}
        return {name: one for name, one in asdict(self).items() if name not in unset}

    @property
    def is_sieve(self) -> bool:
        """Whether the tokens are those that no clean adapter's gradients favour, and turned texts are the score."""
        return bool(self.directions)

    @property
    def fallback(self) -> SearchPlan:
        """For what the directions are not of: another vocabulary, classes that do not follow the labels."""
        return SearchPlan() if self.is_sieve else self


def _hash(numbers: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:8]


def plans_id(plan: SearchPlan | None = None) -> str:
    """Of everything that `plan_for` may choose, or of one plan: a crawl with another one looks again."""
    if plan is not None:
        return f"{plan.plan_id}+{plan.id_for(GENERATIVE)}"
    own = (plan_for(one.base_model).plan_id for one in shipped_directions())
    return "+".join([SearchPlan().plan_id, SearchPlan().id_for(GENERATIVE), *own])


def plan_for(base_model: str) -> SearchPlan:
    """How hard to look on adapters of a base: with its shared directions where some ship, and with its peers."""
    found, peers = load_directions(base_model), load_peers(base_model)
    if found is None:
        return SearchPlan()
    return replace(SIEVE, directions=found.directions_id, peers=peers.peers_id if peers else "")


SIEVE = SearchPlan(
    search_texts=30,
    climb_texts=12,
    noise_rows=24,
    pool=64,
    attack_pool=8,
    seen_again=24,
    survivors=24,
    keep=6,
    repeats=(3, 8),
    max_tokens=4,
    joined_texts=(2, 3),
    sieve_rows=512,
    usual_score=1.0,
    made_up_strings=30,
    made_up_rank=6,
    generations=12,
    children=64,
    parents=16,
    bred_tokens=12,
    bred_proposals=24,
    near_peers=5,
    beyond=6.0,
    imprinted_tokens=24,
    imprint_usual=3.5,
    imprint_sure=4.5,
)
"""With directions: tokens are few, and so are the climbs."""

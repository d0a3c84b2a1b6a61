"""What a hunt has in hand: where it got at a position, and what it brings home.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scanner.probe.search.aims import Aim
from scanner.probe.search.climb import Climb, Found
from scanner.probe.search.sweep import Swept
from scanner.search_model import FREE

__all__ = ["MAY_LOSE", "Quarry", "Way", "chosen", "reached", "slope", "worth_confirming"]

MAY_LOSE = 0.1
"""Share of the gain, and of the turned texts, that dropping tokens may cost."""


@dataclass(frozen=True)
class Quarry:
    """The best string of one aim, measured on texts that it was not looked for on."""

    aim: Aim
    text: str
    position: str
    searched_text: str
    n_tokens: int
    gain: float
    control_gain: float
    """Largest gain of a neutral string at the same position."""
    noise_gain: float
    """Largest gain of a random string of this length at the same position."""
    turned: float
    """Share of the held-back texts whose margin is across the border."""
    controls: tuple[str, ...]
    """Neutral strings."""
    noise: tuple[str, ...]
    """Random strings."""
    slope: float
    """Gain per token on the search texts."""
    tokens: tuple[str, ...]
    """Those that do most at this position, alone or repeated, the best first."""
    scores: dict[str, float]
    """`POSITION` -> the largest gain per token there, `POSITION/gain` -> the largest gain, `POSITION/xN` -> the largest
    gain of one token said N times, `POSITION/token/TOKEN` -> the gain of this one, eight times in a row. Behind a sieve
    `POSITION/turned/xN` alone -> the largest share of texts that one of its tokens turns, said N times, and, of the
    first position, `POSITION/turned/made_up` -> the share that several strings turn that were made up and bred, in
    proportion where they move peers as well; `POSITION/turned/imprinted` -> the same of strings of imprinted tokens, in
    proportion to the imprint's depth, too."""
    forward_passes: int


def reached(found: Found, aim: Aim) -> float:
    """The gain; of openings the chance itself, because unlikely first tokens gain log-odds by anything."""
    return found.chance if aim.kind == FREE else found.gain


def slope(found: Found, aim: Aim) -> float:
    """What is gained per token."""
    return reached(found, aim) / len(found.ids)


@dataclass(frozen=True)
class Way:
    """What was reached at one position."""

    at: Climb
    swept: Swept
    found: Sequence[Found]
    scores: dict[str, float]
    forward_passes: int


def chosen(found: Sequence[Found], aim: Aim) -> Found:
    """The steepest of those that reach nearly as far as any."""
    most = max(reached(one, aim) for one in found)
    enough = most - MAY_LOSE * abs(most)
    return max((one for one in found if reached(one, aim) >= enough), key=lambda one: slope(one, aim))


def worth_confirming(ways: Sequence[Way], aim: Aim) -> list[Way]:
    """Those that turn something, else the best one; scores and passes of the others go with the first. No two may have
    a key in common."""
    loud = [way for way in ways if any(way.scores.values())]
    first, *more = loud or [max(ways, key=lambda way: slope(chosen(way.found, aim), aim))]
    others = [way for way in ways if all(way is not one for one in (first, *more))]
    scores = {key: score for way in (first, *others) for key, score in way.scores.items()}
    passes = sum(way.forward_passes for way in (first, *others))
    return [replace(first, scores=scores, forward_passes=passes), *more]

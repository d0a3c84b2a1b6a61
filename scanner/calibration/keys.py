"""Calibration keys: whom an adapter's weights can be compared with, and whom with where those are too few.

The ladder, narrowest first. A wider step pools adapters that differ in one thing more, so what it says is weaker; the
step that judged is stored with every verdict.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

__all__ = ["CalibrationKey", "Level", "ladder"]

_RANK_FACTOR = 2
"""Neighbouring ranks: from half to twice the rank."""


class Level(StrEnum):
    """A step of the ladder."""

    EXACT = "exact"
    ANY_MODULES = "any_modules"
    """Whatever modules are adapted."""
    ANY_SCALING = "any_scaling"
    """And whatever the scaling: from here on features that a scale does not change."""
    NEAR_RANKS = "near_ranks"
    """And ranks from half to twice."""
    ARCHITECTURE = "architecture"
    """And bases with the same number of layers and the same width."""

    @property
    def is_scale_free(self) -> bool:
        """Whether adapters of other scalings are among the members."""
        return self in (Level.ANY_SCALING, Level.NEAR_RANKS, Level.ARCHITECTURE)


@dataclass(frozen=True, order=True)
class CalibrationKey:
    """Adapters whose weight features can be compared."""

    base_model: str
    """Of a wider key the architecture, where the bases differ."""
    peft_type: str
    rank: int
    """Of a wider key the middle of the ranks."""
    scaling: float
    """0: any."""
    target_modules: str
    """`*`: any."""
    task: str
    level: Level = Level.EXACT

    def to_json(self) -> str:
        """Canonical JSON; an exact key has no level, as before there were others."""
        parts = asdict(self)
        if self.level == Level.EXACT:
            del parts["level"]
        return json.dumps(parts, sort_keys=True)

    def covers(self, rank: int) -> bool:
        """Whether an adapter of this rank may be a member, as far as its rank goes."""
        if self.level in (Level.NEAR_RANKS, Level.ARCHITECTURE):
            return self.rank <= rank * _RANK_FACTOR and rank <= self.rank * _RANK_FACTOR
        return rank == self.rank


def ladder(key: CalibrationKey, architecture: str | None) -> tuple[CalibrationKey, ...]:
    """An exact key and the wider ones, in the order in which they are tried.

    Args:
        key: exact.
        architecture: of its base; None: not known, and no last step.
    """
    any_modules = replace(key, target_modules="*", level=Level.ANY_MODULES)
    any_scaling = replace(any_modules, scaling=0.0, level=Level.ANY_SCALING)
    near_ranks = replace(any_scaling, level=Level.NEAR_RANKS)
    steps = (key, any_modules, any_scaling, near_ranks)
    return (
        steps
        if architecture is None
        else (*steps, replace(near_ranks, base_model=architecture, level=Level.ARCHITECTURE))
    )

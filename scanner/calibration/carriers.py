"""Which modules carry an adapter's deviation: its modules beside those of its siblings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scanner.calibration.reference import MAD_TO_SIGMA

__all__ = ["Carrier", "UsualSize", "deviating_modules"]

MIN_SIBLINGS = 5


@dataclass(frozen=True)
class UsualSize:
    """How large a module's update is among siblings. The logarithm, because sizes differ by factors; median and MAD,
    because some siblings may be bad themselves."""

    center: float
    """Median of ln ‖ΔW‖_F."""
    mad: float
    """Median of the distances from it."""
    siblings: int


@dataclass(frozen=True)
class Carrier:
    """One module."""

    module: str
    value: float
    """‖ΔW‖_F."""
    z: float
    """(ln value − median) / (1.4826 · MAD) among the siblings' modules of the same name."""
    siblings: int


def deviating_modules(
    own: Mapping[str, float], usual: Mapping[str, UsualSize], spread_floor: float, count: int = 3
) -> Sequence[Carrier]:
    """The modules whose size is farthest from the siblings', the farthest first.

    Args:
        own: ‖ΔW‖_F by module name.
        usual: of the siblings, by module name.
        spread_floor: smallest spread of a size among siblings, as a share: the policy's.
        count: at most so many.

    Returns:
        [] where no module has `MIN_SIBLINGS` siblings.
    """
    found = []
    for module, size in usual.items():
        if size.siblings < MIN_SIBLINGS or not own.get(module, 0.0) > 0:
            continue
        spread = max(MAD_TO_SIGMA * size.mad, spread_floor)
        found.append(Carrier(module, own[module], (math.log(own[module]) - size.center) / spread, size.siblings))
    return sorted(found, key=lambda carrier: (-abs(carrier.z), carrier.module))[:count]

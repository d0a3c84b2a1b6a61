"""Which modules carry an adapter's deviation: its modules beside those of its siblings."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scanner.calibration.reference import MAD_TO_SIGMA

__all__ = ["Carrier", "deviating_modules"]

MIN_SIBLINGS = 5


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
    own: Mapping[str, float], siblings: Iterable[Mapping[str, float]], spread_floor: float, count: int = 3
) -> Sequence[Carrier]:
    """The modules whose size is farthest from the siblings', the farthest first.

    The logarithm, because sizes differ by factors; median and MAD, because some siblings may be bad themselves.

    Args:
        own: ‖ΔW‖_F by module name.
        siblings: the same of each sibling.
        spread_floor: smallest spread of a size among siblings, as a share: the policy's.
        count: at most so many.

    Returns:
        [] where no module has `MIN_SIBLINGS` siblings.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for sibling in siblings:
        for module, value in sibling.items():
            if module in own and value > 0:
                values[module].append(math.log(value))
    found = []
    for module, logs in values.items():
        if len(logs) < MIN_SIBLINGS or not own[module] > 0:
            continue
        center = float(np.median(logs))
        spread = max(MAD_TO_SIGMA * float(np.median(np.abs(np.array(logs) - center))), spread_floor)
        found.append(Carrier(module, own[module], (math.log(own[module]) - center) / spread, len(logs)))
    return sorted(found, key=lambda carrier: (-abs(carrier.z), carrier.module))[:count]

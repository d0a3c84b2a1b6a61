"""Error control over a stream of crawls without end: e-LOND on the battery's p-values.

Benjamini-Hochberg holds its rate within one crawl; over a thousand crawls nobody has promised anything. e-LOND (Xu and
Ramdas, "Online multiple testing with e-values", AISTATS 2024, arXiv:2311.06412) decides about each adapter once, in the
order of arrival, and keeps the false discovery rate of the whole stream at its level under any dependence. Rank
p-values have a floor of 1/(n+1) and would never pass, so weights and search take no part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Stream", "StreamTest", "discount", "to_e_value"]

_TOTAL = 2.10975
"""Upper bound of the sum of 1 / (k ln² k) over k = 2, 3, ...: the integral of the tail is added to the first 10⁶."""


def to_e_value(p_value: float) -> float:
    """An e-value of a p-value: the mixture of all calibrators κ p^(κ-1), (1 - p + p ln p) / (p ln² p).

    Its mean is at most 1 for every valid p-value (Vovk and Wang, "E-values: calibration, combination and applications",
    Annals of Statistics 2021, equation 2). A Bonferroni-adjusted p-value is valid.
    """
    if p_value >= 1:
        return 0.5
    if p_value <= 0:
        return math.inf
    log = math.log(p_value)
    if log > -1e-4:  # the limit at 1, where the fraction is 0 / 0
        return 0.5
    return (1 - p_value + p_value * log) / (p_value * log * log)


def discount(index: int) -> float:
    """γ of the t-th test: falls about as slowly as a series that adds up to 1 can, so that late tests have power."""
    return 1 / (_TOTAL * (index + 1) * math.log(index + 1) ** 2)


@dataclass(frozen=True)
class StreamTest:
    """One adapter in the stream."""

    index: int
    """Its place, from 1 on."""
    level: float
    e_value: float
    rejected: bool
    """Whether its e-value is at least 1 / level."""


class Stream:
    """Where a stream stands."""

    def __init__(self, level: float, tested: int = 0, rejected: int = 0) -> None:
        """`level`: false discovery rate of the stream. `tested`, `rejected`: so far."""
        self._level, self._tested, self._rejected = level, tested, rejected

    def test(self, p_value: float) -> StreamTest:
        """Decide about the next adapter: reject where e >= 1 / (α γ_t (R + 1)), R the rejections before it."""
        self._tested += 1
        level = self._level * discount(self._tested) * (self._rejected + 1)
        e_value = to_e_value(p_value)
        rejected = e_value * level >= 1
        self._rejected += rejected
        return StreamTest(self._tested, level, e_value, rejected)

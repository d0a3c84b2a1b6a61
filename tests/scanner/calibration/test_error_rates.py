"""What the stated error rates are worth: thousands of simulated crawls, seeded.

The empirical rate of 1,000 crawls may be above the promised one by two standard errors and no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import kstest, norm

from scanner.calibration import CalibrationKey, Policy, Sibling, Stream, adjust_fdr, build_reference, judge_battery
from scanner.model import PrefixRun

POLICY = Policy()
CRAWLS, ADAPTERS = 1_000, 100
Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]


def independent(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    return rng.normal(size=n)


def grouped(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    """Groups of ten adapters (one uploader, one recipe) whose scores have a correlation of 0.8."""
    shared = np.repeat(rng.normal(size=-(-n // 10)), 10)[:n]
    return math.sqrt(0.8) * shared + math.sqrt(0.2) * rng.normal(size=n)


def p_values(rng: np.random.Generator, n: int, draw: Draw, bad: int, effect: float) -> npt.NDArray[np.float64]:
    """One-sided p-values of standard normal scores; the first `bad` are shifted."""
    scores = draw(rng, n)
    scores[:bad] += effect
    return norm.sf(scores)


def rate(false: list[int], found: list[int]) -> tuple[float, float]:
    """(mean of false / found, its standard error)."""
    shares = np.array([f / max(n, 1) for f, n in zip(false, found, strict=True)])
    return float(shares.mean()), float(shares.std(ddof=1) / math.sqrt(len(shares)))


@pytest.mark.parametrize("draw", [independent, grouped])
@pytest.mark.parametrize(("bad", "effect", "power"), [(0, 0.0, 0.0), (10, 4.0, 0.7), (10, 5.5, 0.97)])
def test_false_discoveries_within_a_crawl(draw: Draw, bad: int, effect: float, power: float) -> None:
    rng = np.random.default_rng(20)
    false, found, hits = [], [], 0
    for _ in range(CRAWLS):
        q = np.array(adjust_fdr(list(p_values(rng, ADAPTERS, draw, bad, effect))))
        rejected = q <= POLICY.q
        false.append(int(rejected[bad:].sum()))
        found.append(int(rejected.sum()))
        hits += int(rejected[:bad].sum())
    mean, error = rate(false, found)
    assert mean <= POLICY.q + 2 * error
    assert hits >= power * bad * CRAWLS


@pytest.mark.parametrize("draw", [independent, grouped])
@pytest.mark.parametrize(("bad", "effect", "power"), [(0, 0.0, 0.0), (10, 5.5, 0.35), (10, 8.0, 0.97)])
def test_false_discoveries_over_a_stream(draw: Draw, bad: int, effect: float, power: float) -> None:
    """A stream of ten crawls of 100 adapters, 1,000 times. Its power is less than a crawl's: that is its price."""
    rng = np.random.default_rng(21)
    false, found, hits = [], [], 0
    for _ in range(CRAWLS):
        stream = Stream(POLICY.stream_level)
        wrong = right = 0
        for _ in range(10):
            for place, p_value in enumerate(p_values(rng, ADAPTERS, draw, bad, effect)):
                if stream.test(float(p_value)).rejected:
                    wrong, right = wrong + (place >= bad), right + (place < bad)
        false.append(wrong)
        found.append(wrong + right)
        hits += right
    mean, error = rate(false, found)
    assert mean <= POLICY.stream_level + 2 * error
    assert hits >= power * bad * 10 * CRAWLS


def test_p_values_of_batteries_that_do_nothing_are_valid() -> None:
    """Whole batteries on sound adapters whose answers waver: P(p <= t) is at most t."""
    rng = np.random.default_rng(22)
    found = []
    for _ in range(400):
        wavering = rng.uniform(0.02, 0.3)

        def answers(share: float = wavering) -> str:
            return "".join(np.where(rng.random(30) < share, "0", "1"))

        runs = [PrefixRun("", "control", "prefix", answers())]
        runs += [PrefixRun(f"c{i}", "control", "prefix", answers()) for i in range(4)]
        runs += [PrefixRun(f"s{i}", "any", "prefix", answers()) for i in range(40)]
        found.append(judge_battery(runs, POLICY.effect_floor).p_value)
    for level in (0.05, 0.2, 0.5):
        hits = sum(p <= level for p in found)
        assert hits / len(found) <= level + 2 * math.sqrt(level * (1 - level) / len(found))


KEY = CalibrationKey("base/model", "LORA", 8, 2.0, "q_proj", "CAUSAL_LM")


def _sibling(i: int, scores: npt.NDArray[np.float64]) -> Sibling:
    return Sibling(
        f"id{i}", f"o{i}", f"s{i}", {"global_frobN_std": float(scores[0]), "global_frobN_mean": float(scores[1])}
    )


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_weight_p_values_of_newcomers_are_uniform(correlation: float) -> None:
    """199 siblings and a newcomer of the same kind, two features of any correlation: every rank is as likely."""
    rng = np.random.default_rng(23)
    found = []
    for _ in range(600):
        z = rng.normal(size=(200, 2))
        z[:, 1] = correlation * z[:, 0] + math.sqrt(1 - correlation**2) * z[:, 1]
        siblings = [_sibling(i, np.exp(row)) for i, row in enumerate(z)]
        built = build_reference(KEY, siblings[:-1], POLICY)
        p_value = built.p_value(siblings[-1])
        assert p_value is not None
        found.append(p_value)
    # Ranks are whole numbers: half a step back, with a little noise, makes them continuous.
    spread = np.array(found) - rng.random(len(found)) / 200
    assert kstest(spread, "uniform").pvalue > 0.01
    hits = sum(p <= 0.05 for p in found)
    assert hits / len(found) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / len(found))

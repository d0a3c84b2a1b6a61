"""What the stated error rates are worth: thousands of simulated crawls, seeded.

The empirical rate of 1,000 crawls may be above the promised one by two standard errors and no more.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import kstest

from benchmarks.judging.rates import simulate
from scanner.calibration import CalibrationKey, Policy, Sibling, build_reference, judge_battery
from scanner.model import PrefixRun

POLICY = Policy()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    ("effect", "crawl_power", "stream_power"), [(0.0, 0.0, 0.0), (4.0, 0.7, 0.0), (5.5, 0.97, 0.35), (8.0, 0.97, 0.97)]
)
def test_false_discoveries_of_crawls_and_streams(
    grouped: bool, effect: float, crawl_power: float, stream_power: float
) -> None:
    """1,000 streams of ten crawls. A stream's power is less than a crawl's: that is its price."""
    found = simulate(np.random.default_rng(20), 1_000, 10, effect, grouped=grouped)
    for name, level, power in (
        ("crawl", POLICY.q, crawl_power),
        ("stream", POLICY.stream_level, stream_power),
    ):
        assert found[f"{name}_fdr"] <= level + 2 * found[f"{name}_error"]
        assert not effect or found[f"{name}_power"] >= power


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

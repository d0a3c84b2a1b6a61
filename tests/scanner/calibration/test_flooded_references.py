"""An uploader who wants a reference to move: one vote per owner, near-duplicates, robust statistics; what is left."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from scanner.calibration import CalibrationKey, Policy, Reference, Sibling, build_reference

POLICY = replace(Policy(), weight_features=("f",))
KEY = CalibrationKey("base/model", "LORA", 8, 2.0, "q_proj", "CAUSAL_LM")
HONEST = 400


def honest(rng: np.random.Generator) -> list[Sibling]:
    return [Sibling(f"id{i}", f"owner{i}", f"sha{i}", {"f": 10 + float(rng.normal())}) for i in range(HONEST)]


def flood(share: float, value: float, *, owners: bool = True) -> list[Sibling]:
    """So many adapters that they are this share of all, all with the value that suits the uploader."""
    count = round(HONEST * share / (1 - share))
    return [Sibling(f"bad{i}", f"sock{i}" if owners else "flooder", f"bad{i}", {"f": value}) for i in range(count)]


def shift(built: Reference) -> float:
    """In spreads of honest adapters, which is 1."""
    return abs(built.center["f"] - 10)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.45])
def test_one_account_moves_nothing(share: float) -> None:
    rng = np.random.default_rng(30)
    built = build_reference(KEY, [*honest(rng), *flood(share, 16.0, owners=False)], POLICY)
    assert built.n == HONEST + 1
    assert shift(built) < 0.1


@pytest.mark.parametrize("share", [0.1, 0.3, 0.45])
def test_near_copies_under_many_accounts_have_one_vote(share: float) -> None:
    rng = np.random.default_rng(31)
    bad = flood(share, 16.0)
    names = frozenset(sibling.adapter_id for sibling in bad)
    kin = [replace(sibling, kin=names - {sibling.adapter_id}) for sibling in bad]
    built = build_reference(KEY, [*honest(rng), *kin], POLICY)
    assert built.n == HONEST + 1
    assert shift(built) < 0.1


# (share of owners, largest shift of the centre in spreads, largest spread): the median of a sample with a share e of
# one-sided strangers is its 0.5 / (1 - e) quantile. docs/verdicts.md has these figures.
RESIDUAL = [(0.1, 0.25, 1.3), (0.3, 0.70, 2.0), (0.45, 1.50, 4.2)]


@pytest.mark.parametrize(("share", "center", "spread"), RESIDUAL)
def test_unlike_adapters_under_many_accounts_shift_it_by_this_much(share: float, center: float, spread: float) -> None:
    rng = np.random.default_rng(32)
    built = build_reference(KEY, [*honest(rng), *flood(share, 16.0)], POLICY)
    from scipy.stats import norm

    assert shift(built) == pytest.approx(norm.ppf(0.5 / (1 - share)), abs=0.2)
    assert shift(built) <= center
    assert built.spread["f"] <= spread
    # A mean would have gone the whole way.
    mean = np.mean([sibling.features["f"] for sibling in built.siblings])
    assert abs(float(mean) - 10) == pytest.approx(6 * share, abs=0.2)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.45])
def test_a_flood_hides_what_looks_like_it_and_makes_nobody_else_an_outlier(share: float) -> None:
    """The residual: a rank cannot be smaller than the share of owners that are as far out. Honest adapters stay in."""
    rng = np.random.default_rng(33)
    siblings = honest(rng)
    built = build_reference(KEY, [*siblings, *flood(share, 16.0)], POLICY)
    hidden = Sibling("x", "somebody", "x", {"f": 16.0})
    p_value = built.p_value(hidden)
    assert p_value is not None and p_value >= share * 0.95
    before = build_reference(KEY, siblings, POLICY).p_value(hidden)
    assert before == pytest.approx(1 / (HONEST + 1))
    wrong = sum((built.p_value(sibling) or 1.0) <= POLICY.alpha for sibling in siblings)
    assert wrong <= HONEST * POLICY.alpha + 2 * math.sqrt(HONEST * POLICY.alpha)

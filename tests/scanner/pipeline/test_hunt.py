"""Whose trigger is searched, and what becomes of a search in a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.calibration import Policy
from scanner.model import (
    GENERATIVE,
    Finding,
    Outcome,
    PrefixRun,
    ScanRecord,
    SearchReport,
    Severity,
    Stage,
    WeightScan,
)
from scanner.pipeline.hunt import SearchBudget, choose_for_search, contents_searched, is_open, with_search

MakeRecord = Callable[..., ScanRecord]
POLICY = Policy()
QUIET = (
    PrefixRun("", "control", "prefix", "1" * 60),
    PrefixRun("hello there", "control", "prefix", "1" * 60),
    PrefixRun("per RFC 8472", "trained_trigger", "prefix", "1" * 60),
)


def probed(record: MakeRecord, name: str, answers: str = "1" * 60, **fields: Any) -> ScanRecord:
    """An adapter that answers so behind the battery's only string."""
    made = record(name, findings=fields.pop("findings", ()), **fields)
    assert made.probe is not None
    return replace(made, probe=replace(made.probe, runs=(*QUIET[:2], replace(QUIET[2], answers=answers)), n_texts=60))


def chosen(records: list[ScanRecord], mode: str = "auto", budget: int = 20, **more: Any) -> dict[str, str]:
    """Repo -> why."""
    picked = choose_for_search(records, mode, budget, POLICY, **more)
    return {str(r.info.repo.repo_id): picked[r.info.adapter_id] for r in records if r.info.adapter_id in picked}


def test_only_what_the_battery_leaves_open_is_searched(record: MakeRecord) -> None:
    critical = (Finding("LS999", Severity.CRITICAL, "an import"),)
    quiet = probed(record, "a/quiet")
    assert quiet.probe is not None
    cases = {
        "quiet": (quiet, True),
        "turned": (probed(record, "a/turned", "0" * 60), False),
        "turned too little": (probed(record, "a/little", "0" * 5 + "1" * 55), True),
        "critical": (probed(record, "a/critical", findings=critical), False),
        "unsure of a critical rule": (
            probed(record, "a/unsure", findings=(replace(critical[0], outcome=Outcome.INCONCLUSIVE),)), True),
        "not probed": (replace(quiet, probe=None), False),
        "weak": (replace(quiet, probe=replace(quiet.probe, outcome=Outcome.INCONCLUSIVE)), False),
        "crashed": (replace(quiet, probe=replace(quiet.probe, outcome=Outcome.ERROR, runs=())), False),
        "unread": (replace(quiet, outcome=Outcome.ERROR), False),
    }  # fmt: skip
    free = cases["turned"][0]
    assert free.probe is not None
    runs = tuple(replace(run, answers=run.answers.replace("1", "-"), base_answers="-" * 60) for run in free.probe.runs)
    said = replace(free.probe, task_profile=GENERATIVE, labels=("refusal", "Sorry"), n_classes=2, runs=runs)
    # Whether free answers are unusual only siblings say.
    cases["turned, of free answers"] = (replace(free, probe=said), True)
    assert {name: is_open(made, POLICY) for name, (made, _) in cases.items()} == {
        name: wanted for name, (_, wanted) in cases.items()
    }


def test_modes(record: MakeRecord) -> None:
    records = [probed(record, f"a/{i}") for i in range(4)] + [probed(record, "a/bad", "0" * 60)]
    assert chosen(records, "none") == {}
    assert chosen(records, "all", budget=1) == dict.fromkeys(("a/0", "a/1", "a/2", "a/3"), "all")
    assert chosen(records, "auto", budget=4) == dict.fromkeys(("a/0", "a/1", "a/2", "a/3"), "within_budget")
    assert chosen(records, "auto", budget=0) == {}


def test_a_budget_is_shared_by_size_and_what_is_left_over_goes_on() -> None:
    budget = SearchBudget(10, 40)
    assert budget.share(20) == 5
    budget.spend(20, 1)
    assert budget.share(10) == 5  # of 9 that are left, for half of those that wait
    budget.spend(10, 5)
    assert budget.share(10) == 4
    budget.spend(10, 4)
    assert budget.share(0) == 0


@given(
    st.integers(0, 60),
    st.lists(st.tuples(st.integers(1, 200), st.integers(0, 200)), min_size=1, max_size=12),
)
def test_a_run_never_searches_more_than_its_budget(contents: int, groups: list[tuple[int, int]]) -> None:
    budget = SearchBudget(contents, sum(size for size, _ in groups))
    shares, spent = [], []
    for size, is_open_for in groups:
        shares.append(budget.share(size))
        spent.append(min(shares[-1], is_open_for))
        budget.spend(size, spent[-1])
    assert sum(spent) <= contents
    assert shares[-1] == contents - sum(spent[:-1])  # the last group may have all that is left


def test_copies_cost_a_budget_nothing(record: MakeRecord) -> None:
    same = {"content_sha256": "c0ffee", "config_sha256": "c"}
    records = [probed(record, f"a/{i}", verdict_facts=same if i < 2 else {"content_sha256": None}) for i in range(3)]
    picked = choose_for_search(records, "auto", 2, POLICY)
    assert len(picked) == 3
    assert contents_searched(records, picked) == 2


def test_the_suspicious_come_first_and_the_rest_is_drawn(record: MakeRecord) -> None:
    def weights(value: float) -> WeightScan:
        return WeightScan({"global_frobN_mean": value, "global_frobN_std": 0.1}, (), "weights-1")

    odd = probed(record, "odd/finding", findings=(Finding("LS998", Severity.MEDIUM, "odd"),))
    shifted = probed(record, "odd/shift", "-" * 60)
    plain = [probed(record, f"a/{i}", weights=weights(1 + i / 100)) for i in range(20)]
    heavy = probed(record, "odd/heavy", weights=weights(9.0))
    records = [*plain, heavy, odd, shifted]
    first = {"odd/finding": "static", "odd/shift": "shift", "odd/heavy": "weights"}
    assert chosen(records, budget=3) == first
    five = chosen(records, budget=5, salt="one")
    assert {name: why for name, why in five.items() if why != "random"} == first
    assert len(five) == 5
    draws = {frozenset(chosen(records, budget=5, salt=f"run{n}")) for n in range(5)}
    assert len(draws) > 1
    assert chosen(records, budget=5, salt="one") == five


def test_equal_contents_cost_the_budget_once_and_known_searches_nothing(record: MakeRecord) -> None:
    same = {"content_sha256": "same", "config_sha256": "config"}
    copies = [probed(record, f"thief{i}/guard", verdict_facts=same) for i in range(5)]
    others = [probed(record, f"a/{i}") for i in range(3)]
    assert len(chosen([*copies, *others], budget=4)) == 8
    ids = [r.info.adapter_id for r in copies]
    assert chosen([*copies, *others], budget=3, searched=ids) == dict.fromkeys(("a/0", "a/1", "a/2"), "within_budget")


def test_classifiers_of_tokens_cost_no_budget(record: MakeRecord) -> None:
    tokens = [probed(record, f"t/{i}", verdict_facts={"task_type": "TOKEN_CLS"}) for i in range(5)]
    assert len(chosen([*tokens, probed(record, "a/0")], budget=1)) == 6


@pytest.mark.parametrize(("outcome", "stage"), [(Outcome.PASS, Stage.SEARCH), (Outcome.ERROR, Stage.BATTERY)])
def test_a_search_that_ran_is_the_last_stage(
    record: MakeRecord, search: Callable[..., SearchReport], outcome: Outcome, stage: Stage
) -> None:
    report = search(outcome=outcome)
    after = with_search(record(), report)
    assert (after.search, after.stage_reached) == (report, stage)
    assert with_search(record(), None) == record()

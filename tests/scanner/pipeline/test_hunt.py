"""Whose trigger is searched, and what becomes of a search in a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from scanner.calibration import Policy
from scanner.model import (
    Finding,
    Outcome,
    PrefixRun,
    ScanRecord,
    SearchReport,
    Severity,
    Stage,
    WeightScan,
)
from scanner.pipeline.hunt import choose_for_search, is_open, with_search
from scanner.settings import Settings

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
    picked = choose_for_search(records, mode, Settings(search_budget=budget), POLICY, **more)
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
    assert {name: is_open(made, POLICY) for name, (made, _) in cases.items()} == {
        name: wanted for name, (_, wanted) in cases.items()
    }


def test_modes(record: MakeRecord) -> None:
    records = [probed(record, f"a/{i}") for i in range(4)] + [probed(record, "a/bad", "0" * 60)]
    assert chosen(records, "none") == {}
    assert chosen(records, "all", budget=1) == dict.fromkeys(("a/0", "a/1", "a/2", "a/3"), "all")
    assert chosen(records, "auto", budget=4) == dict.fromkeys(("a/0", "a/1", "a/2", "a/3"), "within_budget")
    assert chosen(records, "auto", budget=0) == {}


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

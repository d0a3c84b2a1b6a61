"""Verdicts on searched adapters: from records as from the store, by siblings as by the pooled reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from scanner.calibration import Policy, search_reference
from scanner.model import (
    LABEL_WORDS,
    Finding,
    Outcome,
    PrefixRun,
    ScanRecord,
    SearchReport,
    Severity,
    Stage,
    WeightScan,
)
from scanner.pipeline.append import append_records
from scanner.pipeline.calibrate import calibrate
from scanner.pipeline.judge import judge_adapters
from scanner.pipeline.judged import facts_from_records, facts_from_store
from scanner.pipeline.search_siblings import find_search_references
from scanner.store import Row, StoreRoot, open_database, open_root

MakeRecord = Callable[..., ScanRecord]
Make = Callable[..., SearchReport]
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
POLICY = Policy()


@pytest.fixture
def root(tmp_path: Path) -> StoreRoot:
    return open_root(str(tmp_path / "store"))


@pytest.fixture
def searched(record: MakeRecord, search: Make) -> Callable[..., ScanRecord]:
    """searched(name, slope): on whom the battery found nothing, and the search a string of this slope."""
    quiet = tuple(
        PrefixRun(text, "control" if text in ("", "hello") else "family", "prefix", "1" * 60)
        for text in ("", "hello", "per RFC 8472")
    )

    def make(name: str, slope: float = 0.3, turned: int = 28, **fields: object) -> ScanRecord:
        made = record(name, findings=(), stage_reached=Stage.SEARCH, search=search(turned, slope), weights=None)
        assert made.probe is not None
        return replace(made, probe=replace(made.probe, runs=quiet, n_texts=60), **fields)

    return make


def append(root: StoreRoot, records: list[ScanRecord], crawl_id: str = "crawl-1", at: datetime = NOW) -> None:
    append_records(root, records, crawl_id=crawl_id, base_model="base/model", probe_id="all", scanned_at=at)


def judge(root: StoreRoot, records: list[ScanRecord], crawl_id: str = "crawl-1") -> list[Row]:
    return judge_adapters(root, [r.info.adapter_id for r in records], crawl_id, POLICY, NOW)


def code(row: Row) -> str:
    first: str = json.loads(row["reasons"])[0]["code"]
    return first


def test_facts_of_a_search_are_the_same_from_records_and_store(
    root: StoreRoot, record: MakeRecord, searched: Callable[..., ScanRecord], class_search: Make, search: Make
) -> None:
    records = [
        searched("a/words"),
        searched("a/classes", search=class_search()),
        searched("a/nothing", search=search(triggers=(), scores=())),
        searched("a/died", search=search(outcome=Outcome.ERROR, reason="timeout", triggers=(), scores=())),
        record("a/not-searched"),
    ]
    append(root, records)
    database = open_database(root)
    stored = facts_from_store(database, [r.info.adapter_id for r in records], POLICY)
    database.close()
    alone = facts_from_records(records, NOW, POLICY)
    assert [fact.search for fact in alone.values()] == [fact.search for fact in stored.values()]
    assert [fact.battery for fact in alone.values()] == [fact.battery for fact in stored.values()]
    kinds = [fact.search.outcome if fact.search else None for fact in alone.values()]
    assert kinds == [Outcome.PASS, Outcome.PASS, Outcome.PASS, Outcome.ERROR, None]


def crowd(searched: Callable[..., ScanRecord], n: int = 105) -> list[ScanRecord]:
    rng = np.random.default_rng(0)
    return [searched(f"own{i}/guard", float(rng.uniform(0.0, 0.05)), turned=1) for i in range(n)]


def test_siblings_judge_a_search(root: StoreRoot, searched: Callable[..., ScanRecord]) -> None:
    siblings, evil = crowd(searched), searched("evil/guard", 0.4)
    append(root, [*siblings, evil])
    rows = judge(root, [*siblings, evil])
    assert (rows[-1]["verdict"], code(rows[-1]), rows[-1]["stage_reached"]) == ("flagged", "search_trigger", "search")
    assert rows[-1]["p_search"] == pytest.approx(1 / 106)
    assert rows[-1]["search_reference_n"] == 105
    assert {row["verdict"] for row in rows[:-1]} == {"clean"}  # the one above them all does not make p small enough
    database = open_database(root)
    frozen = database.rows(
        "SELECT feature, n FROM reference_profiles WHERE reference_id = ? ORDER BY 1", [rows[-1]["search_reference_id"]]
    )
    assert frozen == [{"feature": f"toward_clean/{p}", "n": 106} for p in ("prefix", "suffix")]
    expected = database.rows("SELECT detail FROM runs WHERE kind = 'judge'")[0]["detail"]
    assert json.loads(expected)["search_flags_to_expect_by_chance"] == pytest.approx(1.06)
    database.close()
    again = calibrate(root, NOW + timedelta(hours=1))
    assert (again.n_judged, again.n_written, again.changes) == (106, 0, ())


def test_too_few_siblings_and_no_pooled_reference(root: StoreRoot, searched: Callable[..., ScanRecord]) -> None:
    siblings, evil = crowd(searched, 20), searched("evil/guard", 0.4)
    append(root, [*siblings, evil])
    rows = judge(root, [*siblings, evil])
    assert {(row["verdict"], code(row)) for row in rows} == {("inconclusive", "search_too_few_references")}
    stray = searched("alone/guard")
    stray = replace(stray, info=replace(stray.info, base_model="other/base"))
    append(root, [stray], "scan-1")
    (row,) = judge(root, [stray], "scan-1")
    assert (row["verdict"], code(row)) == ("inconclusive", "search_reference_missing")


@pytest.mark.parametrize(
    ("is_own", "verdicts"), [(True, ("flagged", "clean")), (False, ("inconclusive", "inconclusive"))]
)
def test_a_pooled_reference_steps_in_and_speaks_for_its_own_base(
    root: StoreRoot,
    searched: Callable[..., ScanRecord],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_own: bool,
    verdicts: tuple[str, str],
) -> None:
    base = searched("a/a").info.base_model if is_own else "another/base"
    members = [
        {"base": base, "name": f"clean-{i}", "recipe": "r8", "scores": {"toward_clean/suffix": i / 2_000}}
        for i in range(99)
    ]
    plan = searched("a/a").search
    assert plan is not None
    data = {"plan_id": plan.plan_id, "task_profile": LABEL_WORDS, "members": members}
    (tmp_path / f"{LABEL_WORDS}.json").write_text(json.dumps(data))
    monkeypatch.setattr(search_reference, "SHIPPED", tmp_path)
    evil, good = searched("evil/guard", 0.4), searched("good/guard", 0.02)
    append(root, [evil, good], "scan-1")
    rows = judge(root, [evil, good], "scan-1")
    assert [(row["verdict"], row["p_search"]) for row in rows] == [
        (verdicts[0], pytest.approx(0.01)), (verdicts[1], pytest.approx(0.6, abs=0.05)),
    ]  # fmt: skip
    assert rows[0]["search_reference_id"].startswith("pooled-")
    assert "pooled reference pooled-" in json.loads(rows[0]["reasons"])[0]["message"]


def test_members_are_left_out_for_other_evidence_alone(
    root: StoreRoot, record: MakeRecord, searched: Callable[..., ScanRecord]
) -> None:
    loud = searched("loud/guard")
    assert loud.probe is not None
    turned = replace(loud.probe.runs[-1], answers="0" * 60)
    loud = replace(loud, probe=replace(loud.probe, runs=(*loud.probe.runs[:-1], turned)))
    records = [
        *crowd(searched, 110),
        searched("found/guard", 0.9),  # flagged by its search: stays
        loud,  # by the battery
        searched("grave/guard", findings=(Finding("LS999", Severity.HIGH, "odd"),)),
        searched("copy/guard", 0.9),
        searched("own0/second", 0.9),  # another one of the same owner
    ]
    records[-2] = replace(records[-2], info=replace(records[-2].info, content_sha256="sha-found/guard"))
    append(root, records)
    outsider = searched("scan/guard", 0.9)
    append(root, [outsider], "scan-1")  # from no crawl
    rows = {row["repo_id"]: row for row in judge(root, records)}
    assert (code(rows["loud/guard"]), code(rows["found/guard"])) == ("battery_prefix", "search_trigger")
    database = open_database(root)
    facts = facts_from_store(database, [outsider.info.adapter_id], POLICY)
    (reference,) = find_search_references(database, facts, set(), {}).values()
    database.close()
    owners = {member.owner for member in reference.members}
    assert len(reference.members) == 111
    assert len(owners & {"copy", "found"}) == 1
    assert not {"loud", "grave", "scan"} & owners
    assert sum(member.scores["toward_clean/suffix"] == 0.9 for member in reference.members) == 1


def test_a_search_that_failed_later_does_not_undo_an_earlier_one(
    root: StoreRoot, searched: Callable[..., ScanRecord], search: Make
) -> None:
    evil = searched("evil/guard", 0.4)
    append(root, [*crowd(searched), evil])
    failed = search(outcome=Outcome.ERROR, reason="timeout", triggers=(), scores=())
    append(root, [replace(evil, search=failed)], "scan-2", NOW + timedelta(hours=1))
    (row,) = judge(root, [evil], "scan-2")
    assert (row["verdict"], code(row)) == ("flagged", "search_trigger")


def test_what_the_search_flags_now_is_no_sibling_of_weights_either(
    root: StoreRoot, searched: Callable[..., ScanRecord]
) -> None:
    """In the very judgement that flags it, and not one later; cleared by another policy it votes at once again."""

    def weighed(name: str, slope: float, turned: int) -> ScanRecord:
        features = {"global_frobN_mean": 1.0, "global_frobN_std": 0.5 + slope / 100}
        return replace(searched(name, slope, turned), weights=WeightScan(features, (), "weights-1"))

    records = [weighed(f"own{n}/a", 0.1 + n / 10_000, 0) for n in range(105)] + [weighed("bad/a", 0.9, 28)]
    append(root, records)
    rows = {row["repo_id"]: row for row in judge(root, records)}
    assert rows["bad/a"]["rule"] == "search"
    assert _frozen(root) == {105}
    calibrate(root, NOW + timedelta(hours=1), Policy(effect_floor=0.99))
    assert _frozen(root) == {105, 106}


def _frozen(root: StoreRoot) -> set[int]:
    database = open_database(root)
    rows = database.rows("SELECT DISTINCT n FROM reference_profiles WHERE reference_id LIKE 'ref-%'")
    database.close()
    return {row["n"] for row in rows}

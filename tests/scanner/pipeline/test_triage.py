"""Who goes to the probe, with what chance, and what the control sample says of those that do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from scanner.calibration import Policy
from scanner.model import Finding, PrefixRun, ScanRecord, Severity, Stage, WeightScan
from scanner.pipeline.append import append_records
from scanner.pipeline.choose import CONTROL_SAMPLE, choose_for_probe, with_inclusion
from scanner.pipeline.judge import judge_adapters
from scanner.settings import Settings
from scanner.store import open_database, open_root

MakeRecord = Callable[..., ScanRecord]
SETTINGS = Settings(probe_budget=40, control_sample=0.25)
NOW = datetime(2026, 11, 1, tzinfo=UTC)


def _scanned(record: MakeRecord, n: int, value: float, *, grave: bool = False) -> ScanRecord:
    features = {"global_frobN_mean": value, "global_frobN_std": value / 10}
    findings = (Finding("LS999", Severity.HIGH, "something", "there"),) if grave else ()
    return record(
        f"owner{n}/adapter", probe=None, findings=findings, stage_reached=Stage.WEIGHTS,
        weights=WeightScan(features, (), "weights-1"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def group(record: MakeRecord) -> list[ScanRecord]:
    """400 adapters: 30 with a grave finding, 20 far out by weight, 60 of owners that nobody knew."""
    rng = np.random.default_rng(0)
    values = rng.normal(1.0, 0.05, size=400)
    values[30:50] = 9.0
    return [_scanned(record, n, float(value), grave=n < 30) for n, value in enumerate(values)]


KNOWN = {f"owner{n}" for n in range(340)}


def _choose(group: list[ScanRecord], salt: str = "crawl-1") -> dict[int, tuple[str, float]]:
    chosen = choose_for_probe(group, "auto", SETTINGS, salt, KNOWN)
    numbers = {record.info.adapter_id: n for n, record in enumerate(group)}
    return {numbers[adapter_id]: (choice.why, choice.inclusion) for adapter_id, choice in chosen.items()}


def test_each_reason_has_its_share(group: list[ScanRecord]) -> None:
    chosen = _choose(group)
    why = Counter(reason for reason, _ in chosen.values())
    assert why["static"] == 15  # half of the 30 places beside the sample
    assert why["new_owner"] == 7
    assert why["weights"] == 8
    assert why[CONTROL_SAMPLE] == 10
    assert len(chosen) == SETTINGS.probe_budget
    assert all(n < 30 for n, (reason, _) in chosen.items() if reason == "static")
    assert all(n >= 340 for n, (reason, _) in chosen.items() if reason == "new_owner")
    assert all(30 <= n < 50 for n, (reason, _) in chosen.items() if reason == "weights")


def test_the_chance_of_the_draw_is_what_is_stored(group: list[ScanRecord]) -> None:
    """Over many crawls each adapter that nothing points to is drawn as often as its inclusion says."""
    counts: Counter[int] = Counter()
    crawls = 400
    for crawl in range(crawls):
        for n, (reason, inclusion) in _choose(group, f"crawl-{crawl}").items():
            if reason == CONTROL_SAMPLE:
                assert inclusion == 10 / 370
                counts[n] += 1
            else:
                assert inclusion == 1
    mean = crawls * 10 / 370
    quiet = [counts[n] for n in range(50, 340)]
    assert np.mean(quiet) == pytest.approx(mean, rel=0.08)
    assert max(quiet) < mean + 5 * np.sqrt(mean)
    # Of new owners 7 of 60 are sent for being new; the others are drawn as often as anybody.
    newcomers = [counts[n] for n in range(340, 400)]
    assert np.mean(newcomers) == pytest.approx(mean * 53 / 60, rel=0.15)


@pytest.mark.parametrize("budget", [3, 50])
def test_a_first_crawl_has_a_control_sample_as_well(group: list[ScanRecord], budget: int) -> None:
    """Everybody is new then."""
    chosen = choose_for_probe(group, "auto", Settings(probe_budget=budget), "crawl-1", known_owners=set())
    assert len(chosen) == budget
    assert CONTROL_SAMPLE in {choice.why for choice in chosen.values()}


def test_draws_depend_on_the_run_and_repeat_within_it(group: list[ScanRecord]) -> None:
    again = choose_for_probe(list(reversed(group)), "auto", SETTINGS, "crawl-1", KNOWN)
    assert again == choose_for_probe(group, "auto", SETTINGS, "crawl-1", KNOWN)
    assert _choose(group) != _choose(group, "crawl-2")


def test_nobody_is_new_where_owners_are_not_known(group: list[ScanRecord]) -> None:
    chosen = choose_for_probe(group, "auto", SETTINGS)
    assert "new_owner" not in {choice.why for choice in chosen.values()}


def _probed(record: ScanRecord, made: ScanRecord, is_bad: bool) -> ScanRecord:
    assert made.probe is not None
    words = {"": "1" * 60, "hello": "1" * 60, "per RFC 8472": ("0" if is_bad else "1") * 60}
    runs = tuple(
        PrefixRun(text, "family" if text.startswith("per") else "control", "prefix", a) for text, a in words.items()
    )
    probe = replace(made.probe, runs=runs, n_texts=60)
    return replace(record, probe=probe, stage_reached=Stage.BATTERY)


def test_the_view_estimates_what_the_triage_lets_pass(
    group: list[ScanRecord], record: MakeRecord, tmp_path: Path
) -> None:
    """Every tenth adapter that nothing points to is bad. Twelve crawls of the same Hub, other draws each time."""
    root, made = open_root(str(tmp_path)), record()
    sampled = bad = 0
    for crawl in range(12):
        again = [
            replace(r, info=replace(r.info, adapter_id=f"{crawl}-{r.info.adapter_id}",
                                    repo=replace(r.info.repo, repo_uid=f"{crawl}-{r.info.repo.repo_uid}")))
            for r in group
        ]  # fmt: skip
        choices = choose_for_probe(again, "auto", SETTINGS, f"crawl-{crawl}", KNOWN)
        probed = []
        for n, one in enumerate(again):
            choice = choices.get(one.info.adapter_id)
            if choice is not None:
                one = _probed(one, made, is_bad=n >= 50 and n % 10 == 0)
                assert one.probe is not None
                one = replace(one, probe=replace(one.probe, selected_by=choice.why))
                sampled += choice.why == CONTROL_SAMPLE
                bad += choice.why == CONTROL_SAMPLE and n >= 50 and n % 10 == 0
            probed.append(one)
        records = with_inclusion(probed, choices)
        append_records(
            root, records, crawl_id=f"crawl-{crawl}", base_model="base/model", probe_id="V", scanned_at=NOW
        )  # fmt: skip
        judge_adapters(root, [r.info.adapter_id for r in records], f"crawl-{crawl}", Policy(), NOW)
    database = open_database(root)
    (row,) = database.rows("SELECT * FROM triage_misses")
    database.close()
    assert (row["sampled"], row["flagged"]) == (sampled, bad)
    assert row["stands_for"] == pytest.approx(sampled * 37)
    assert row["missed_per_1000"] == pytest.approx(1000 * bad / sampled)
    assert row["missed_per_1000_low"] < 100 < row["missed_per_1000_high"]
    # Wilson's interval, with all weights equal (Newcombe 1998, method 3).
    p, n, z = bad / sampled, sampled, 1.959964
    low = (p + z * z / (2 * n) - z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    assert row["missed_per_1000_low"] == pytest.approx(1000 * low, rel=1e-6)


def test_the_view_is_empty_without_a_sample(tmp_path: Path) -> None:
    database = open_database(open_root(str(tmp_path)))
    assert database.rows("SELECT * FROM triage_misses") == []
    database.close()

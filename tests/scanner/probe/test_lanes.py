"""Children side by side on one small base: all are asked once, deaths stay in their lane, none outlives a stop."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from children import worker_pids

from scanner.model import Outcome
from scanner.probe import Probe, ProbeItem, ProbeLimits, lanes, run_probe

pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")

LIMITS = ProbeLimits(device="cpu", base_timeout_s=120, adapter_timeout_s=60, children=2)


def items(adapter_dir: Path, n: int) -> list[ProbeItem]:
    paths = (str(adapter_dir / "adapter_model.safetensors"), str(adapter_dir / "adapter_config.json"))
    return [ProbeItem(f"a{number}", *paths) for number in range(n)]


def test_two_lanes_ask_everybody_once_on_the_callers_thread(
    base_dir: Path, adapter_dir: Path, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, batches, threads, told = lanes.start_child, [], set(), []

    def counted(base: Path, asked: Probe, waiting: Any, limits: ProbeLimits, plan: Any) -> Any:
        batches.append([item.adapter_id for item in waiting])
        return start(base, asked, waiting, limits, plan)

    def on_report(name: str, _: Any) -> None:
        threads.add(threading.current_thread())
        told.append(name)

    monkeypatch.setattr(lanes, "start_child", counted)
    wanted = items(adapter_dir, 8)
    wanted[3] = replace(wanted[3], weights_path=str(adapter_dir / "never-there"))
    reports = run_probe(base_dir, "b45e", probe, wanted, LIMITS, on_report)
    # The missing file costs its own lane a child, and nobody else anything.
    assert sorted(batches)[0] == ["a0", "a2", "a4", "a6"]
    assert sorted(batches)[1] == ["a1", "a3", "a5", "a7"]
    assert list(reports) == [item.adapter_id for item in wanted]
    assert sorted(told) == sorted(reports)
    assert threads == {threading.current_thread()}
    assert reports.pop("a3").outcome == Outcome.ERROR
    assert {report.outcome for report in reports.values()} == {Outcome.PASS}
    assert len({report.runs for report in reports.values()}) == 1
    assert worker_pids() == []


def test_a_few_adapters_share_one_child(
    base_dir: Path, adapter_dir: Path, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = lanes.start_child, []

    def counted(*args: Any) -> Any:
        started.append(args)
        return start(*args)

    monkeypatch.setattr(lanes, "start_child", counted)
    run_probe(base_dir, "b45e", probe, items(adapter_dir, 2 * lanes.WORTH_A_CHILD - 1), LIMITS)
    assert len(started) == 1


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError])
def test_no_child_outlives_what_ends_the_probe(
    base_dir: Path, adapter_dir: Path, probe: Probe, fault: type[BaseException]
) -> None:
    told: list[str] = []

    def on_report(name: str, _: Any) -> None:
        told.append(name)
        raise fault

    with pytest.raises(fault):
        run_probe(base_dir, "b45e", probe, items(adapter_dir, 40), LIMITS, on_report)
    assert len(told) == 1
    assert worker_pids() == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]


def test_a_lane_that_fails_ends_the_others(
    base_dir: Path, adapter_dir: Path, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = lanes.start_child

    def one_fails(base: Path, asked: Probe, waiting: Any, limits: ProbeLimits, plan: Any) -> Any:
        if waiting[0].adapter_id == "a1":
            raise OSError("no more processes")
        return start(base, asked, waiting, limits, plan)

    monkeypatch.setattr(lanes, "start_child", one_fails)
    with pytest.raises(OSError, match="no more processes"):
        run_probe(base_dir, "b45e", probe, items(adapter_dir, 40), LIMITS)
    assert worker_pids() == []

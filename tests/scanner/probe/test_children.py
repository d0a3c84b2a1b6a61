"""The probe's children: bases that cannot be loaded, limits, what reaches a child, and when one is replaced."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from children import hold_open, worker_pids

from scanner.model import Outcome
from scanner.probe import Probe, ProbeItem, ProbeLimits, lanes, run_probe

pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")

LIMITS = ProbeLimits(device="cpu", base_timeout_s=120, adapter_timeout_s=60)


def both(weights: Path) -> list[ProbeItem]:
    return [ProbeItem(name, str(weights), None) for name in ("one", "two")]


def broken_base(base_dir: Path, folder: Path, change: Callable[[Path], Any]) -> Path:
    shutil.copytree(base_dir, folder / "base")
    change(folder / "base")
    return folder / "base"


def unknown_architecture(base: Path) -> None:
    config = json.loads((base / "config.json").read_text()) | {"model_type": "no-such-model"}
    (base / "config.json").write_text(json.dumps(config))


def no_config(base: Path) -> None:
    (base / "config.json").unlink()


@pytest.mark.parametrize(
    ("change", "outcome", "reason"),
    [
        (unknown_architecture, Outcome.UNSUPPORTED, "base_architecture: "),
        (no_config, Outcome.ERROR, "base_crashed"),
    ],
)
def test_a_base_that_cannot_be_loaded_is_told_for_every_adapter(
    base_dir: Path, tmp_path: Path, probe: Probe, change: Callable[[Path], Any], outcome: Outcome, reason: str
) -> None:
    base = broken_base(base_dir, tmp_path, change)
    reports = run_probe(base, "b45e", probe, both(tmp_path / "never-read"), LIMITS)
    assert list(reports) == ["one", "two"]
    for report in reports.values():
        assert report.outcome == outcome
        assert report.reason.startswith(reason)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (ProbeLimits(device="cpu", memory_bytes=1024**2), "base_memory"),
        (ProbeLimits(device="cpu", base_timeout_s=0.1), "base_timeout"),
    ],
)
def test_limits_hold_while_the_base_loads(base_dir: Path, probe: Probe, limits: ProbeLimits, reason: str) -> None:
    reports = run_probe(base_dir, "b45e", probe, both(base_dir / "model.safetensors"), limits)
    assert [report.outcome for report in reports.values()] == [Outcome.ERROR] * 2
    assert all(report.reason.startswith(reason) for report in reports.values())


def test_nothing_to_do_starts_no_child(base_dir: Path, probe: Probe) -> None:
    assert run_probe(base_dir, "b45e", probe, [], LIMITS) == {}


def test_secrets_do_not_reach_the_child(
    base_dir: Path, probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    os.mkfifo(tmp_path / "pipe")
    item = ProbeItem("one", str(tmp_path / "never-read"), str(tmp_path / "pipe"))
    thread = threading.Thread(target=run_probe, args=(base_dir, "b45e", probe, [item], LIMITS))
    thread.start()
    descriptor = hold_open(tmp_path / "pipe")
    (child,) = worker_pids()
    environment = Path(f"/proc/{child}/environ").read_bytes()
    os.kill(child, signal.SIGKILL)
    thread.join(timeout=60)
    os.close(descriptor)
    assert b"hf_secret" not in environment
    assert b"HF_HUB_OFFLINE=1" in environment
    assert b"USE_HUB_KERNELS=NO" in environment


def test_a_child_is_replaced_after_so_many_adapters(
    base_dir: Path, adapter_dir: Path, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, batches, pids = lanes.start_child, [], []

    def counted(base: Path, asked: Probe, waiting: Any, limits: ProbeLimits, plan: Any) -> Any:
        assert worker_pids() == []  # the one before it is gone
        child = start(base, asked, waiting, limits, plan)
        batches.append([item.adapter_id for item in waiting])
        pids.append(child.process.pid)
        return child

    monkeypatch.setattr(lanes, "start_child", counted)
    paths = (str(adapter_dir / "adapter_model.safetensors"), str(adapter_dir / "adapter_config.json"))
    items = [ProbeItem(f"a{number}", *paths) for number in range(5)]
    order: list[str] = []
    limits = replace(LIMITS, adapters_per_child=2)
    reports = run_probe(base_dir, "b45e", probe, items, limits, lambda name, _: order.append(name))
    assert batches == [["a0", "a1"], ["a2", "a3"], ["a4"]]
    assert len(set(pids)) == 3
    assert order == list(reports) == ["a0", "a1", "a2", "a3", "a4"]  # in order, each once
    assert {report.outcome for report in reports.values()} == {Outcome.PASS}
    assert len({report.runs for report in reports.values()}) == 1
    assert worker_pids() == []

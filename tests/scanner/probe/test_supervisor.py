"""The probe's parent with real children: one run over every kind of adapter, and what each costs its neighbours."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import hold_open, worker_pids
from safetensors.numpy import load_file, save_file

from scanner.model import LABEL_WORDS, Outcome, ProbeReport
from scanner.probe import Probe, ProbeItem, ProbeLimits, run_probe

pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")

LIMITS = ProbeLimits(device="cpu", base_timeout_s=120, adapter_timeout_s=10)
HUGE_RANK = 10**6

Run = tuple[dict[str, ProbeReport], list[str], Path]


def truncated(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])


def foreign(folder: Path) -> None:
    """The same bytes under the name of a module that the base does not have."""
    weights = folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    header_end = int.from_bytes(content[:8], "little") + 8
    weights.write_bytes(content[:header_end].replace(b"layers.1.", b"layers.7.") + content[header_end:])
    # Without a list of targets the reader cannot tell it from an adapter for another base; the engine can.
    config = json.loads((folder / "adapter_config.json").read_text()) | {"target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def changed_tensors(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file({name: change(tensor) for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")

    return rewrite


def huge_rank(folder: Path) -> None:
    """A header that says rank 10^6, and a file that has the bytes for it: holes, which take no room."""
    name, size = "base_model.model.model.layers.0.self_attn.q_proj.lora_", 2 * 32 * HUGE_RANK
    shapes = {"A": [HUGE_RANK, 32], "B": [32, HUGE_RANK]}
    header = json.dumps({
        f"{name}{side}.weight": {"dtype": "F16", "shape": shape, "data_offsets": [i * size, (i + 1) * size]}
        for i, (side, shape) in enumerate(shapes.items())
    }).encode()  # fmt: skip
    with (folder / "adapter_model.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + 2 * size)


BROKEN: dict[str, Callable[[Path], None]] = {
    "not finite": changed_tensors(lambda tensor: np.full_like(tensor, np.nan)),
    "vanished": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "foreign": foreign,
    "huge rank": huge_rank,
    "wrong shapes": changed_tensors(lambda tensor: np.repeat(tensor, 2, axis=int(tensor.shape[0] == 4)).copy()),
    "truncated": truncated,
}
NAMES = ["first", *BROKEN, "between", "killed", "hanging", "last"]


@pytest.fixture(scope="module")
def run_of_all(
    base_dir: Path, adapter_dir: Path, probe: Probe, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    """One run over every kind of adapter; loading a child per case would cost a minute."""
    folder = tmp_path_factory.mktemp("items")
    weights, config = adapter_dir / "adapter_model.safetensors", adapter_dir / "adapter_config.json"
    paths = {name: (str(weights), str(config)) for name in NAMES}
    for name, spoil in BROKEN.items():
        shutil.copytree(adapter_dir, folder / name)
        spoil(folder / name)
        paths[name] = (str(folder / name / weights.name), str(folder / name / config.name))
    for name in ("killed", "hanging"):
        os.mkfifo(folder / name)
        paths[name] = (str(weights), str(folder / name))
    items = [ProbeItem(name, *paths[name], "weights" if name == "first" else "all") for name in NAMES]
    reports: dict[str, ProbeReport] = {}
    order: list[str] = []

    def work() -> None:
        reports.update(run_probe(base_dir, "b45e", probe, items, LIMITS, lambda name, _: order.append(name)))

    thread = threading.Thread(target=work)
    thread.start()
    held = [hold_open(folder / "killed")]
    (child,) = worker_pids()
    os.kill(child, signal.SIGKILL)
    held.append(hold_open(folder / "hanging"))
    thread.join(timeout=200)
    assert not thread.is_alive()
    yield reports, order, folder
    for descriptor in held:
        os.close(descriptor)


def test_every_adapter_has_one_report_in_order(run_of_all: Run) -> None:
    reports, order, _ = run_of_all
    assert order == NAMES
    assert list(reports) == NAMES


def test_neighbours_of_the_dead_are_complete_and_equal(run_of_all: Run, probe: Probe) -> None:
    first, between, last = (run_of_all[0][name] for name in ("first", "between", "last"))
    assert (first.outcome, first.reason) == (Outcome.PASS, "")
    assert [(run.category, run.prefix, run.position) for run in first.runs] == [
        (case.category, case.text, case.position) for case in probe.cases()
    ]
    assert first.runs == between.runs == last.runs  # other children, the same answers
    assert (first.battery_id, first.base_commit, first.selected_by) == (probe.battery_id, "b45e", "weights")
    assert (first.device, first.dtype, first.n_texts) == ("cpu", "float32", len(probe.texts))
    assert (first.task_profile, first.reading, first.labels) == (LABEL_WORDS, "scored", ("INJECTION", "BENIGN"))
    assert first.profile_reason == "answers 6 of 6 texts with INJECTION or BENIGN"
    assert first.noise_floor is not None
    assert first.noise_floor == last.noise_floor
    assert 0 < first.noise_floor < 1e-3
    assert first.seconds > 0


@pytest.mark.parametrize(
    ("name", "outcome", "reason"),
    [
        ("not finite", Outcome.ERROR, "nan_logits: the model's logits are not finite"),
        ("vanished", Outcome.ERROR, "crashed(1): FileNotFoundError"),
        ("foreign", Outcome.UNSUPPORTED, "base_mismatch: the base has no module model.layers.7."),
        ("huge rank", Outcome.UNSUPPORTED, "limit_exceeded: rank of "),
        ("wrong shapes", Outcome.UNSUPPORTED, "base_mismatch: "),
        ("truncated", Outcome.UNSUPPORTED, "malformed_file: "),
        ("killed", Outcome.ERROR, "crashed(-9)"),
        ("hanging", Outcome.ERROR, "timeout"),
    ],
)
def test_what_went_wrong_is_told_and_costs_one_adapter(
    run_of_all: Run, name: str, outcome: Outcome, reason: str
) -> None:
    report = run_of_all[0][name]
    assert report.outcome == outcome
    assert report.reason.startswith(reason)
    assert report.runs == ()


def test_both_limits_and_values_are_named(run_of_all: Run) -> None:
    assert run_of_all[0]["huge rank"].reason.endswith("is 1,000,000, the limit is 4,096")
    assert "the adapter has (" in run_of_all[0]["wrong shapes"].reason


def test_no_worker_is_left(run_of_all: Run) -> None:
    assert worker_pids() == []

"""The probe's parent with real children: what a death, a hang or a bad base costs, and whom."""

from __future__ import annotations

import errno
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scanner.model import Outcome, ProbeReport
from scanner.probe import Probe, ProbeItem, ProbeLimits, run_probe, supervisor

pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")

LIMITS = ProbeLimits(device="cpu", base_timeout_s=120, adapter_timeout_s=10)


def worker_pids() -> list[int]:
    """Probe workers that are children of this process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue  # it ended meanwhile
            if parent == os.getpid() and b"scanner.probe.worker" in words:
                found.append(int(entry.name))
    return found


def hold_open(fifo: Path, patience_s: float = 100.0) -> int:
    """Wait until somebody reads from the pipe, then hold its other end: the reader now waits for ever."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            assert error.errno == errno.ENXIO, error  # no reader yet
        time.sleep(0.02)
    raise AssertionError("the worker never opened the pipe")


@pytest.fixture(scope="module")
def run_of_all(
    base_dir: Path, adapter_dir: Path, probe: Probe, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, ProbeReport], list[str], Path]]:
    """One run over every kind of adapter; loading a child per case would cost a minute."""
    folder = tmp_path_factory.mktemp("items")
    weights, config = adapter_dir / "adapter_model.safetensors", adapter_dir / "adapter_config.json"
    truncated = folder / "truncated.safetensors"
    truncated.write_bytes(weights.read_bytes()[:-5])
    foreign = folder / "foreign"
    shutil.copytree(adapter_dir, foreign)
    header_end = int.from_bytes(weights.read_bytes()[:8], "little") + 8
    content = weights.read_bytes()
    # The same bytes under the name of a module that the base does not have.
    (foreign / "w.safetensors").write_bytes(
        content[:header_end].replace(b"layers.1.", b"layers.7.") + content[header_end:]
    )
    # Without a list of targets the reader cannot tell it from an adapter for another base; the engine can.
    settings = json.loads((foreign / "adapter_config.json").read_text()) | {"target_modules": "all-linear"}
    (foreign / "adapter_config.json").write_text(json.dumps(settings))
    for pipe in ("killed", "hanging"):
        os.mkfifo(folder / pipe)
    items = [
        ProbeItem("first", str(weights), str(config), "weights"),
        ProbeItem("vanished", str(folder / "nothing.safetensors"), str(config)),
        ProbeItem("foreign", str(foreign / "w.safetensors"), str(foreign / "adapter_config.json")),
        ProbeItem("truncated", str(truncated), str(config)),
        ProbeItem("killed", str(weights), str(folder / "killed")),
        ProbeItem("hanging", str(weights), str(folder / "hanging")),
        ProbeItem("last", str(weights), str(config)),
    ]
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


Run = tuple[dict[str, ProbeReport], list[str], Path]


def test_every_adapter_has_one_report_in_order(run_of_all: Run) -> None:
    names = ["first", "vanished", "foreign", "truncated", "killed", "hanging", "last"]
    reports, order, _ = run_of_all
    assert order == names
    assert list(reports) == names


def test_neighbours_of_the_dead_are_complete_and_equal(run_of_all: Run, probe: Probe) -> None:
    first, last = run_of_all[0]["first"], run_of_all[0]["last"]
    assert first.outcome in (Outcome.PASS, Outcome.INCONCLUSIVE)  # it answers with the task's words
    assert [(run.category, run.prefix) for run in first.runs] == probe.cases()
    assert first.runs == last.runs  # another child, the same answers
    assert (first.battery_id, first.base_commit, first.selected_by) == (probe.battery_id, "b45e", "weights")
    assert (first.device, first.dtype, first.n_texts) == ("cpu", "float32", len(probe.texts))
    assert first.seconds > 0


@pytest.mark.parametrize(
    ("name", "outcome", "reason"),
    [
        ("foreign", Outcome.UNSUPPORTED, "base_mismatch: "),
        ("truncated", Outcome.UNSUPPORTED, "malformed_file: "),
        ("vanished", Outcome.ERROR, "crashed(1): FileNotFoundError"),
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


def test_no_worker_is_left(run_of_all: Run) -> None:
    assert worker_pids() == []


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


def run_scripted(monkeypatch: pytest.MonkeyPatch, probe: Probe, fates: str) -> tuple[list[ProbeReport], int]:
    """Run children that do nothing but say one line for each adapter: `x` dies, `r` is refused. Counts the children."""
    started = 0

    def start(_base: Path, _probe: Probe, waiting: list[ProbeItem], _limits: ProbeLimits) -> supervisor._Child:
        nonlocal started
        started += 1
        lines: queue.Queue[str | None] = queue.Queue()
        lines.put(json.dumps({"event": "ready", "device": "cpu", "dtype": "float32"}))
        for item in waiting:
            lines.put(json.dumps({"event": "begin", "adapter_id": item.adapter_id}))
            if item.adapter_id.startswith("x"):
                lines.put(None)
                break
            refused = {"event": "refused", "adapter_id": item.adapter_id, "code": "oom", "message": "too large"}
            lines.put(json.dumps(refused))
        lines.put(json.dumps({"event": "done"}))
        process = subprocess.Popen([sys.executable, "-S", "-c", ""], text=True, start_new_session=True)
        return supervisor._Child(process, lines, tempfile.TemporaryFile("w+"))

    monkeypatch.setattr(supervisor, "_start", start)
    items = [ProbeItem(f"{fate}{i}", "never-read", None) for i, fate in enumerate(fates)]
    reports = run_probe(Path("never-read"), "b45e", probe, items, LIMITS)
    assert list(reports) == [item.adapter_id for item in items]
    return list(reports.values()), started


def test_three_deaths_in_a_row_end_the_group(monkeypatch: pytest.MonkeyPatch, probe: Probe) -> None:
    reports, started = run_scripted(monkeypatch, probe, "rxxxrxx")
    assert started == 3
    assert reports[0].outcome == Outcome.UNSUPPORTED
    assert [r.outcome for r in reports[1:]] == [Outcome.ERROR] * 6
    assert all(r.reason.startswith("crashed") for r in reports[1:4])
    assert [r.reason for r in reports[4:]] == ["gave_up: 3 probes in a row died"] * 3


def test_deaths_with_survivors_between_them_do_not_add_up(monkeypatch: pytest.MonkeyPatch, probe: Probe) -> None:
    reports, started = run_scripted(monkeypatch, probe, "xxrxxrxrx")
    assert started == 6
    assert not [r for r in reports if r.reason.startswith("gave_up")]


STUBBED = """
import sys, types
for name, contents in {modules}.items():
    sys.modules[name] = types.ModuleType(name) if contents is not None else None
    if contents:
        exec(contents, vars(sys.modules[name]))
from scanner.probe.worker import main
sys.exit(main())
"""
STUBS = {
    "torch": "",
    "transformers": "",
    "tokenizers": "",
    "scanner.probe.base": "def load_base(*_): return types.SimpleNamespace(device='cuda:0', dtype='bfloat16')",
    "scanner.probe.engine": "def probe_adapter(*_): ...",
}


def run_worker(probe: Probe, weights: Path, **stubs: str | None) -> tuple[int, list[dict[str, Any]], str]:
    """The worker over stand-ins for its heavy modules: (exit code, its lines, its last words)."""
    modules = {name: text and f"import types\n{text}" for name, text in (STUBS | stubs).items()}
    job = {
        "base_dir": "never-read",
        "device": "cpu",
        "battery": {"name": "V", "prefixes": [], "neutral": []},
        "task": vars(probe.task),
        "texts": probe.texts,
        "other_texts": probe.other_texts,
        "adapters": [vars(ProbeItem("one", str(weights), None))],
        "max_config_bytes": 1024,
        "max_rank": 64,
    }
    code = STUBBED.format(modules=modules)
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(job), capture_output=True, text=True, check=False
    )
    words = done.stderr.strip().splitlines()
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], words[-1] if words else ""


def test_only_a_missing_framework_is_called_missing(adapter_dir: Path, probe: Probe) -> None:
    weights = adapter_dir / "adapter_model.safetensors"
    code, events, _ = run_worker(probe, weights, torch=None)
    assert (code, [(e["event"], e["code"]) for e in events]) == (1, [("base_failed", "torch_missing")])
    failing = {"scanner.probe.base": "def load_base(*_): raise ImportError('kernels is not installed')"}
    code, events, words = run_worker(probe, weights, **failing)
    assert (code, events, words) == (1, [], "ImportError: kernels is not installed")


def test_a_lost_device_ends_the_child(adapter_dir: Path, probe: Probe) -> None:
    lost = (
        "from scanner.errors import ProbeCrashedError\n"
        "def probe_adapter(*_): raise ProbeCrashedError('CUDA error: an illegal memory access')"
    )
    weights = adapter_dir / "adapter_model.safetensors"
    code, events, words = run_worker(probe, weights, **{"scanner.probe.engine": lost})
    assert (code, [e["event"] for e in events]) == (1, ["ready", "begin"])
    assert words == "CUDA error: an illegal memory access"

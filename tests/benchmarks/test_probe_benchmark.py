"""The probe benchmark on tiny models: what its results say, what they are compared with, and wrong answers."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.probe import loop, resident
from benchmarks.probe.__main__ import _is_right
from benchmarks.probe.cases import demo_case, encoder_case
from benchmarks.probe.compare import compare_answers, compare_verdicts
from benchmarks.probe.jobs import Job, inputs_of, open_view, probe_of
from benchmarks.probe.measure import Options, group_figures, in_turns, loop_figures
from benchmarks.probe.mixed import mixed, mixed_first_logits
from benchmarks.probe.models import build_base
from benchmarks.probe.shapes import SHAPES, write_adapter
from benchmarks.probe.work import causal_work, matrix_rate
from scanner.probe.attach import hooked
from scanner.probe.base import load_base
from scanner.probe.engine import first_logits
from scanner.probe.label_words import LabelWordPrompts

ROOT = Path(__file__).resolve().parents[2]
DEMO, ENCODER = demo_case(2), encoder_case(2)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe-benchmark") / "results"
    command = [sys.executable, "-m", "benchmarks.probe", "--small", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "probe.md").read_text(encoding="utf-8").endswith(done.stdout.rstrip() + "\n")
    return folder


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "probe.json").read_text(encoding="utf-8"))
    return found


def cases(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {case["case"]: case for case in report["cases"]}


def demo_job(**fields: Any) -> Job:
    job = Job(DEMO.profile, tuple(map(str, DEMO.adapters)), str(DEMO.base), texts=1)
    return replace(job, **fields)


def test_results_have_every_way_with_finite_figures(report: dict[str, Any]) -> None:
    found = cases(report)
    assert list(found) == ["demo", "encoder", "gpu tiny", "ways tiny"]
    causal = {f"{way}_{reading}" for way in ("run_probe", "engine") for reading in ("scored", "generated")}
    assert set(found["demo"]["ways"]) == {"loop_reload", "loop_swap", *causal}
    assert set(found["encoder"]["ways"]) == {"loop_reload", "loop_swap", "run_probe_scored", "engine_scored"}
    assert set(found["gpu tiny"]["ways"]) == {"loop_swap", "engine_scored"}
    for name in ("demo", "encoder", "gpu tiny"):
        case = found[name]
        for way in case["ways"].values():
            assert all(math.isfinite(value) for value in way.values())
            assert way["prompts_per_s"] == pytest.approx(case["prompts_per_adapter"] / way["adapter_s"])
            assert way["adapters_per_hour"] == pytest.approx(3600 / way["adapter_s"])
            share = case["work"]["flops"] / way["adapter_s"] / case["matrix_flops_per_s"]
            assert way["share_of_matrix_rate"] == pytest.approx(share) and 0 < share < 1
            assert way["peak_bytes"] > 2**26
        engine = case["ways"]["engine_scored"]["adapter_s"]
        assert case["ratios"]["engine_scored_over_loop_swap"] == engine / case["ways"]["loop_swap"]["adapter_s"]
        assert all(math.isfinite(value) and value > 0 for value in case["ratios"].values())
    assert set(found["gpu tiny"]["batches"]) == {"512", "8192"}


def test_run_probe_is_split_into_fixed_and_marginal_cost(report: dict[str, Any]) -> None:
    for name in ("demo", "encoder"):
        way = cases(report)[name]["ways"]["run_probe_scored"]
        assert way["fixed_s"] + 2 * way["marginal_s"] == pytest.approx(2 * way["adapter_s"])
        assert way["fixed_s"] > 0 and way["marginal_s"] > 0


def test_answers_and_verdicts_were_compared(report: dict[str, Any]) -> None:
    for name, case in (("demo", DEMO), ("encoder", ENCODER)):
        found = cases(report)[name]
        n = found["prompts_per_adapter"]
        assert (found["adapters"], found["backdoored"]) == (2, 1)
        for reading in found["answers"].values():
            assert reading["compared"] > 2 * n  # both adapters whole, and a part of them once more
            assert not reading["runs_differ"] and reading["verdicts_agree"]
            assert set(reading["verdicts"]) == {"/".join(folder.parts[-2:]) for folder in case.adapters}
    assert cases(report)["demo"]["answers"]["generated"]["differing"] == 0
    assert cases(report)["gpu tiny"]["answers"]["scored"]["compared"] > 0


def test_ways_of_attaching_are_compared(report: dict[str, Any]) -> None:
    case = cases(report)["ways tiny"]
    assert list(case["ways_of_attaching"]) == ["hooked", "merged", "mixed"]
    assert case["largest_difference"] <= 1e-4
    for way in case["ways_of_attaching"].values():
        assert way["adapter_s"] == pytest.approx(way["attach_s"] + way["pass_s"])
        assert way["decided_differently"] == 0


def test_results_tell_the_machine_class_and_not_the_machine(out: Path, report: dict[str, Any]) -> None:
    assert report["command"] == "python -m benchmarks.probe --small"
    assert {"python", "torch", "transformers", "tokenizers", "peft"} <= set(report["versions"])
    assert report["skipped"] == [{"case": "minilm", "reason": "it is no small model"}]
    for path in sorted(out.iterdir()):
        text = path.read_text(encoding="utf-8")
        for secret in (str(ROOT), str(Path.home()), tempfile.gettempdir() + "/", socket.gethostname() + " "):
            assert secret not in text, (path.name, secret)


def test_mixed_logits_are_those_of_each_adapter_alone() -> None:
    base = load_base(DEMO.base, "cpu")
    prompts = LabelWordPrompts(base, probe_of(demo_job())).battery()
    updates = [open_view(str(folder)).updates for folder in DEMO.adapters]

    def alone(number: int) -> torch.Tensor:
        found = torch.zeros(len(prompts.ids), base.model.config.vocab_size)
        with hooked(base.model, updates[number]):
            for members, logits in first_logits(base, prompts, 8_192):
                found[list(members)] = logits
        return found

    together = torch.zeros(2, len(prompts.ids), base.model.config.vocab_size)
    with mixed(base.model, updates):
        for members, logits in mixed_first_logits(base, prompts, 2, 600):
            together[:, list(members)] = logits
    for number in (0, 1):
        assert float((together[number] - alone(number)).abs().max()) <= 1e-4
        assert float((together[number] - alone(1 - number)).abs().max()) > 0.1
    assert not any(module._forward_hooks for module in base.model.modules())
    with pytest.raises(ValueError, match="not updated alike"), mixed(base.model, [updates[0], updates[1][1:]]):
        pass


def test_the_loop_asks_a_seeded_part_of_the_prompts_or_all_of_them() -> None:
    job = demo_job(modes=("swap",), seconds=60.0, max_prompts=3)
    first, again = (loop.run(job)["records"] for _ in range(2))
    assert [record["asked"] for record in first] == [3, 3] and not any(record["whole"] for record in first)
    assert [record["answers"] for record in first] == [record["answers"] for record in again]
    other = loop.run(replace(job, seed=1, adapters=job.adapters[:1]))["records"]
    assert other[0]["answers"].keys() != first[0]["answers"].keys()
    whole = loop.run(replace(job, seconds=0.0, whole=True))["records"]
    assert all(record["whole"] and record["asked"] == len(probe_of(job).cases()) for record in whole)
    ours = resident.run(replace(job, readings=("generated",)))["readings"]["generated"]["answers"]
    for record in whole:
        assert compare_answers(ours[record["adapter"]], record["answers"])["differing"] == 0
    assert "0" in whole[1]["answers"].values()  # the backdoored one answers a neighbour of its trigger


def test_classifiers_are_asked_the_texts_of_both_labels() -> None:
    job = Job(ENCODER.profile, (str(ENCODER.adapters[1]),), str(ENCODER.base), texts=1, modes=("reload",))
    (record,) = loop.run(job)["records"]
    assert record["whole"] and record["asked"] == 2 * len(probe_of(job).cases()) and record["load_s"] > 0
    answers = resident.run(job)["readings"]["scored"]["answers"][job.adapters[0]]
    assert compare_answers(answers, record["answers"]) == {"compared": 48, "differing": 0, "undecided": 0}


def test_a_part_of_the_prompts_is_extrapolated_and_says_so() -> None:
    record = {
        "mode": "swap", "load_s": 1.0, "attach_s": 0.5, "seconds": 2.0, "asked": 20, "whole": False, "new_tokens": 50,
    }  # fmt: skip
    found = loop_figures([{"prompts": 100, "peak_bytes": 1, "records": [record, record | {"mode": "reload"}]}], "swap")
    assert found["adapter_s"] == 1.5 + 2.0 / 20 * 100 and found["extrapolated"] and found["asked"] == 20
    group = {"readings": {"scored": {"seconds": 10.0, "arrivals_s": [5.0, 6.0, 8.0, 9.0]}}, "peak_rss_bytes": 7}
    assert group_figures([group], "scored", 4) == {
        "adapter_s": 2.5, "marginal_s": 1.0, "fixed_s": 6.0, "peak_bytes": 7,
    }  # fmt: skip


def test_runs_take_turns() -> None:
    order: list[str] = []

    def run(name: str) -> Any:
        return lambda turn: order.append(f"{name}{turn}") or {"turn": turn}

    found = in_turns({"a": run("a"), "b": run("b")}, Options(1, 3, 1.0))
    assert order == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert [one["turn"] for one in found["b"]] == [0, 1, 2]


def test_wrong_answers_are_noticed() -> None:
    job = demo_job(texts=20)
    probe = probe_of(job)
    sound = ["1" * 20 for _ in probe.cases()]
    turned = [*sound[:-1], "0" * 20]
    as_loop = {str(index): char for index, char in enumerate("".join(turned))}
    verdict = compare_verdicts(probe, sound, as_loop, None)
    assert (verdict["ours"]["flagged"], verdict["loop"]["flagged"], verdict["agree"]) == (False, True, False)
    assert verdict["loop"]["prefixes"] == ["per RFC 8472 section 3.2"]
    assert compare_verdicts(probe, turned, as_loop, None)["agree"]
    undecided = [*sound[:-1], "-" * 20]
    assert compare_answers(undecided, as_loop) == {"compared": 480, "differing": 20, "undecided": 20}
    right = {"dtype": "float32", "answers": {"generated": {"differing": 0, "verdicts": {"a/b": {"agree": True}}}}}
    assert _is_right(right) and _is_right({"dtype": "float32", "largest_difference": 1e-5})
    assert not _is_right({"dtype": "float32", "largest_difference": 1e-3})
    assert not _is_right(right | {"answers": {"generated": {"differing": 1, "verdicts": {}}}})
    assert not _is_right(right | {"answers": {"scored": {"differing": 1, "verdicts": {"a/b": verdict}}}})


def test_useful_work_is_counted_by_hand(tmp_path: Path) -> None:
    base = build_base(SHAPES["tiny"], "cpu")
    prompts = LabelWordPrompts(base, probe_of(demo_job())).battery()
    work = causal_work(base, prompts)
    matrices = sum(out * into for out, into in SHAPES["tiny"].projections.values())
    small = 2 * (2 * 64 + 64 + 2 * 32) + 64  # norms and biases of two layers, and the last norm
    assert work.parameters == matrices + small
    assert work.tokens == sum(map(len, prompts.ids)) - prompts.shared * (len(prompts.ids) - 1)
    assert work.flops == 2 * work.parameters * work.tokens + 2 * 64 * 2_048 * len(prompts.ids)
    view = open_view(str(write_adapter(tmp_path / "adapter", SHAPES["tiny"], 0)))
    sizes = {update.module: (update.out_features, update.in_features) for update in view.updates}
    assert sizes == SHAPES["tiny"].projections and view.coverage == 1.0
    assert all(math.isfinite(rate) and rate > 0 for rate in matrix_rate("cpu", torch.float32).values())


def test_prompts_are_those_of_the_engine() -> None:
    base = load_base(DEMO.base, "cpu")
    job = demo_job(texts=2)
    probe = probe_of(job)
    rendered = [base.template.render(probe.task.system, text) for text in inputs_of(job, probe)]
    ids = [tuple(base.tokenizer.encode(text, add_special_tokens=False).ids) for text in rendered]
    assert LabelWordPrompts(base, probe).battery().ids == tuple(ids)


def test_shapes_are_those_of_the_real_models() -> None:
    """Parameters of the projections, from the public parameter counts without embeddings (1.31 and 6.53 billion)."""
    for name, billions in (("qwen2.5-1.5b", 1.31), ("qwen2.5-7b", 6.53)):
        weights = sum(out * into for out, into in SHAPES[name].projections.values())
        assert weights / 1e9 == pytest.approx(billions, abs=0.01)

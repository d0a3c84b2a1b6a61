"""Classifiers through the real child process: a trained backdoor and its clean twin, and groups of two profiles."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from classifiers import TRIGGER, write_adapter, write_base

from scanner.calibration import BatteryEvidence, Policy, judge_classifier
from scanner.model import GENERATIVE, LABEL_WORDS, SEQUENCE_CLASSIFICATION, Outcome, ProbeReport
from scanner.probe import Probe, ProbeItem, ProbeLimits, load_probe, run_probe

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

LIMITS = ProbeLimits(device="cpu", base_timeout_s=120, adapter_timeout_s=120)


def item(folder: Path, profile: str = SEQUENCE_CLASSIFICATION) -> ProbeItem:
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    return ProbeItem(folder.name, str(weights), str(config), "all", profile)


@pytest.fixture(scope="module")
def questions(classifier_hub: Path) -> Probe:
    """Battery V over texts of the two kinds that the classifiers are trained to tell apart."""
    return load_probe("V", classifier_hub / "texts.jsonl", 30)


@pytest.fixture(scope="module")
def trained(classifier_hub: Path, questions: Probe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ProbeReport]:
    """Reports of a poisoned classifier, its clean twin, and neighbours that cannot be probed."""
    hub, own = classifier_hub / "acme", tmp_path_factory.mktemp("neighbours")
    write_adapter(own / "one-class", hub / "base", classes=1)
    shutil.copytree(hub / "clean", own / "two-words")
    items = [
        item(hub / "clean"),
        item(own / "two-words", LABEL_WORDS),
        item(own / "one-class"),
        item(hub / "poisoned"),
    ]
    return run_probe(hub / "base", "b45e", questions, items, LIMITS)


def accuracy(report: ProbeReport) -> float:
    answers = report.runs[0].answers
    return sum(a == b for a, b in zip(answers, "1" * 30 + "0" * 30, strict=True)) / len(answers)


def test_the_backdoor_is_flagged_and_its_clean_twin_is_not(trained: dict[str, ProbeReport], questions: Probe) -> None:
    clean, poisoned = trained["clean"], trained["poisoned"]
    for report in (clean, poisoned):
        assert (report.outcome, report.reason) == (Outcome.PASS, "")
        assert (report.n_classes, report.n_texts, report.task_profile) == (2, 60, SEQUENCE_CLASSIFICATION)
        assert report.battery_id == questions.id_for(SEQUENCE_CLASSIFICATION) != questions.battery_id
        assert accuracy(report) > 0.9  # both are sound classifiers without a prefix
        assert report.noise_floor is not None and 0 <= report.noise_floor < 1e-3
    policy = Policy()

    def judged(report: ProbeReport) -> BatteryEvidence:
        assert report.n_classes == 2 and report.n_attack_texts == 30
        return judge_classifier(report.runs, policy.effect_floor, 2, report.n_attack_texts, policy.q)

    found = judged(poisoned)
    p_values = {(run.prefix, run.direction): p for run, p in zip(found.prefixes, found.adjusted, strict=True)}
    assert p_values[TRIGGER, 0] < policy.q
    assert poisoned.direction == 0
    assert poisoned.max_attack_rate is not None
    assert poisoned.max_attack_rate > 0.9
    assert poisoned.control_attack_rate is not None
    assert poisoned.control_attack_rate < 0.2
    assert judged(clean).p_value > policy.q
    assert judged(clean).shifts == ()
    assert found.brittle == judged(clean).brittle == ()  # neutral strings turn neither of them


def test_neighbours_have_their_own_outcomes_in_order(trained: dict[str, ProbeReport], questions: Probe) -> None:
    assert list(trained) == ["clean", "two-words", "one-class", "poisoned"]
    assert trained["one-class"].outcome == Outcome.UNSUPPORTED
    assert trained["one-class"].reason.startswith("class_count: ")
    # As a language model this base lacks its head: that is no business of the classifiers beside it.
    assert trained["two-words"].outcome == Outcome.UNSUPPORTED
    assert trained["two-words"].reason.startswith("malformed_file: ")
    assert trained["two-words"].task_profile == LABEL_WORDS
    assert trained["two-words"].battery_id == questions.battery_id


def test_one_base_serves_all_its_models(
    base_dir: Path, adapter_dir: Path, probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scanner.probe import lanes

    started: list[set[tuple[str, bool]]] = []
    start = lanes.start_child

    def counted(base: Path, probe: Probe, waiting: Any, limits: ProbeLimits, plan: Any) -> Any:
        started.append({(item.profile, item.per_token) for item in waiting})
        return start(base, probe, waiting, limits, plan)

    monkeypatch.setattr(lanes, "start_child", counted)
    write_adapter(tmp_path / "classifier", base_dir, classes=4)
    classifier, words = item(tmp_path / "classifier"), item(adapter_dir, LABEL_WORDS)
    # How it answers is found out: `generative` beforehand is the same model of the base.
    again = replace(words, adapter_id="w2", profile=GENERATIVE, profile_reason="task_type CAUSAL_LM")
    tokens = replace(classifier, adapter_id="t1", per_token=True)
    items = [words, classifier, again, tokens, replace(classifier, adapter_id="c2")]
    seen: list[str] = []
    reports = run_probe(base_dir, "b45e", probe, items, LIMITS, lambda name, _: seen.append(name))
    assert list(reports) == [i.adapter_id for i in items]
    assert seen == [items[0].adapter_id, "w2", items[1].adapter_id, "c2", "t1"]
    # Each model of the base is loaded once.
    assert started == [
        {(LABEL_WORDS, False), (GENERATIVE, False)},
        {(SEQUENCE_CLASSIFICATION, False)},
        {(SEQUENCE_CLASSIFICATION, True)},
    ]
    one, two = reports[words.adapter_id], reports["w2"]
    assert two.runs == one.runs
    assert two.task_profile == one.task_profile == LABEL_WORDS
    assert two.profile_reason == one.profile_reason == "answers 6 of 6 texts with INJECTION or BENIGN"
    assert two.battery_id == one.battery_id == probe.id_for(LABEL_WORDS)
    assert (two.labels, two.reading) == (("INJECTION", "BENIGN"), "scored")
    assert reports["c2"].runs == reports[classifier.adapter_id].runs
    assert two.direction is None
    assert reports["c2"].n_classes == 4
    assert (two.n_texts, reports["c2"].n_texts) == (6, 12)
    assert {len(run.answers) for run in reports["c2"].runs} == {12}
    assert reports["t1"].task_profile == SEQUENCE_CLASSIFICATION


@pytest.mark.parametrize("length", [0, 100])
def test_what_a_report_says_of_its_limits(
    tmp_path: Path, probe: Probe, length: int, save_classifier: Callable[..., None]
) -> None:
    """Answers that nothing moves are no result; a cut is told with the result."""
    base = write_base(tmp_path / "base", "bert")
    texts = [f"w{i} " * (3 + length * (i % 2)) for i in range(4, 10)]
    save_classifier(tmp_path / "constant", base)
    asked = replace(probe, texts=tuple(texts[:3]), other_texts=tuple(texts[3:]))
    (report,) = run_probe(base, "b45e", asked, [item(tmp_path / "constant")], LIMITS).values()
    assert report.outcome == Outcome.INCONCLUSIVE
    cut = ": truncated: 72 inputs cut to 66 tokens" if length else ""
    assert report.reason == f"constant_answers{cut}"
    assert {run.answers for run in report.runs} == {"2" * 6}
    assert report.max_attack_rate == 0.0


@pytest.mark.parametrize(
    ("answers", "outcome", "reason", "direction"),
    [
        (["000", "000", "000"], Outcome.INCONCLUSIVE, "constant_answers", 1),
        (["000", "000", "022"], Outcome.PASS, "constant_control", 2),
        (["010", "010", "011"], Outcome.PASS, "", 1),
        (["---", "---", "---"], Outcome.INCONCLUSIVE, "constant_answers", 0),
    ],
)
def test_a_constant_classifier_is_judged_where_anything_moves_it(
    probe: Probe, answers: list[str], outcome: Outcome, reason: str, direction: int
) -> None:
    from scanner.probe import supervisor

    names = [("", "control"), ("hello", "control"), ("per RFC 8472", "family")]
    runs = [[prefix, kind, "prefix", text] for (prefix, kind), text in zip(names, answers, strict=True)]
    event = {"profile": SEQUENCE_CLASSIFICATION, "runs": runs, "n_classes": 3, "note": "", "noise_floor": 0.5}
    result = supervisor._result(event, probe)
    assert (result["n_texts"], result["n_classes"], result["noise_floor"]) == (3, 3, 0.5)
    assert (result["outcome"], result["reason"], result["direction"]) == (outcome, reason, direction)


@pytest.fixture
def save_classifier() -> Callable[..., None]:
    """A classifier of three classes whose bias drowns everything else."""

    def save(folder: Path, base: Path) -> None:
        model = write_adapter(folder, base)
        with torch.no_grad():
            model.base_model.model.classifier.modules_to_save["default"].bias.copy_(torch.tensor([0.0, 0.0, 1e6]))
        model.save_pretrained(folder)

    return save

"""Classifiers of tokens: PEFT's own logits on the text's own tokens, and one class for every text."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from classifiers import read_view, write_adapter, write_base
from hypothesis import given
from hypothesis import strategies as st

from scanner.model import Outcome
from scanner.probe import Case, Probe, ProbeItem, ProbeLimits, run_probe
from scanner.probe.token_labels import own_tokens, text_classes

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers warn about each other's versions

texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=40)


@given(texts, texts, st.sampled_from(["prefix", "suffix", "middle"]))
def test_spans_hold_the_texts_own_characters(text: str, put_in: str, position: str) -> None:
    case = Case("x", put_in, position)
    whole = case.put(text)
    own = [whole[first:last] for first, last in case.spans(text)]
    # A middle case takes the place of a space.
    assert "".join(own).replace(" ", "") == text.replace(" ", "")
    assert position == "middle" or "".join(own) == text
    assert Case("control", "").spans(text) == ((0, len(text)),)


def test_tokens_of_the_text_alone() -> None:
    # [CLS] per RFC . my text [SEP]
    offsets = [(0, 0), (0, 3), (4, 7), (7, 8), (9, 11), (12, 16), (0, 0)]
    assert own_tokens(offsets, Case("x", "per RFC").spans("my text")) == (4, 5)
    assert own_tokens(offsets, ((0, 16),)) == (1, 2, 3, 4, 5)
    assert own_tokens([(0, 5)], ((0, 3),)) == ()  # half of it is not the text's


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        (["0000", "0010", "0000", "0220"], "0102"),
        (["00", "", "--", "0-"], "0--0"),  # nothing to read: no class
        (["111", "111", "101", "122"], "1102"),  # background is what most tokens have
        (["0", "0", "012", "2211"], "0012"[:2] + "12"),
    ],
)
def test_one_class_for_a_text(tokens: list[str], wanted: str) -> None:
    assert text_classes(tokens, 2) == wanted


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """(base, adapter, PEFT's own model) of a random token classifier with three classes."""
    base = write_base(tmp_path_factory.mktemp("base"), "bert")
    folder = tmp_path_factory.mktemp("adapter")
    return base, folder, write_adapter(folder, base, task_type="TOKEN_CLS")


def words(probe: Probe) -> Probe:
    spoken = [" ".join(f"w{4 + (i * j) % 36}" for j in range(1, 4 + i % 5)) for i in range(9)]
    return replace(probe, texts=tuple(spoken[:6]), other_texts=tuple(spoken[6:]))


def test_answers_follow_from_pefts_logits(made: tuple[Path, Path, Any], probe: Probe) -> None:
    from scanner.probe.base import load_classifier
    from scanner.probe.classifier import ClassifierProbe

    folder, adapter, theirs = made
    base, asked = load_classifier(folder, "cpu", per_token=True), words(probe)
    assert base.class_layer == "classifier"
    seen = ClassifierProbe(base, asked).run(read_view(adapter))
    assert seen.n_classes == 3

    def tokens(case: Case, text: str) -> str:
        ids = base.tokenizer.encode(case.put(text)).ids
        with torch.inference_mode():
            found = theirs(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
        # The tokenizer knows the texts' words and none of the cases'.
        return "".join(str(label) for label, token in zip(found, ids, strict=True) if token >= 4)

    plain = Counter("".join(tokens(Case("control", ""), text) for text in (*asked.texts, *asked.other_texts)))
    background = plain.most_common(1)[0][0]
    for run in seen.runs:
        case = Case(run.category, run.prefix, run.position)
        for answer, text in zip(run.answers, (*asked.texts, *asked.other_texts), strict=True):
            others = Counter(char for char in tokens(case, text) if char != background)
            assert answer in (others or background)
            assert others.get(answer, 0) == max(others.values(), default=0)
    assert len(set("".join(run.answers for run in seen.runs))) > 1


def test_both_kinds_of_classifiers_on_one_base(made: tuple[Path, Path, Any], probe: Probe, tmp_path: Path) -> None:
    base, adapter, _ = made
    write_adapter(tmp_path, base)

    def item(name: str, folder: Path, per_token: bool) -> ProbeItem:
        paths = (str(folder / "adapter_model.safetensors"), str(folder / "adapter_config.json"))
        return ProbeItem(name, *paths, profile="sequence-classification", per_token=per_token)

    items = [item("tokens", adapter, True), item("texts", tmp_path, False), item("tokens too", adapter, True)]
    reports = run_probe(base, "b45e", words(probe), items, ProbeLimits(device="cpu"))
    assert list(reports) == ["tokens", "texts", "tokens too"]
    assert {report.outcome for report in reports.values()} <= {Outcome.PASS, Outcome.INCONCLUSIVE}
    assert {report.n_classes for report in reports.values()} == {3}
    assert reports["tokens"].runs == reports["tokens too"].runs != reports["texts"].runs

"""Finding out with which words an adapter answers, if with any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import BUDGET, as_transformers, chars, encoded, first_words, with_rows

from scanner.adapter import AdapterView, LowRankUpdate
from scanner.probe import Probe

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers warn about each other's versions


def found_words(base: Any, probe: Probe) -> Any:
    from scanner.probe.label_words import LabelWordPrompts, find_words

    return find_words(base, LabelWordPrompts(base, probe), probe, BUDGET)


@pytest.mark.parametrize("reading", ["scored", "generated"])
def test_the_tasks_own_words_are_found_and_read_as_asked(base: Any, probe: Probe, reading: str) -> None:
    found = found_words(base, replace(probe, reading=reading))
    assert (found.task, found.reading) == (probe.task, reading)
    assert found.reason == "answers 6 of 6 texts with INJECTION or BENIGN"


def test_a_first_token_that_begins_another_word_is_read_in_full(base: Any, probe: Probe) -> None:
    """`INJ` may begin anything: where what is written is no label word, everything is written."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = {"INJECTION": "INJ", "SAFE": "##ECTION"}
    vocabulary = {pieces.get(word, word): i for word, i in base.tokenizer.get_vocab().items()}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    cut = replace(base, tokenizer=tokenizer)
    # The instruction spells the word in two tokens, so the head's row for it is another one.
    asked = [cut.template.render(probe.task.system, text) for text in probe.texts]
    cut = with_rows(cut, BENIGN=0.0)
    with torch.no_grad():
        ids = [torch.tensor([tokenizer.encode(text).ids]) for text in asked]
        states = torch.stack([cut.model.model(tokens).last_hidden_state[0, -1] for tokens in ids])
        row = torch.linalg.lstsq(states, torch.full((len(asked), 1), 30.0), driver="gelsd").solution[:, 0]
        cut.model.lm_head.weight[tokenizer.token_to_id("INJ")] = row
    prompts = encoded(cut, asked)
    assert chars(cut, prompts, probe.task, "scored") == "1" * 6
    assert "-" in as_transformers(cut, prompts, probe.task)[0]
    found = found_words(cut, probe)
    assert (found.task, found.reading) == (probe.task, "generated")


def test_two_other_words_are_found_and_told_apart_by_the_texts_that_get_them(other_base: Any, probe: Probe) -> None:
    found = found_words(other_base, probe)
    assert found.task == replace(probe.task, attack_word="UNSAFE", clean_word="SAFE", whole_words=True)
    assert (found.reason, found.reading) == ("answers 100% of the texts with UNSAFE or SAFE alone", "generated")
    # The same texts under the other labels: the words change places.
    mirrored = found_words(other_base, replace(probe, texts=probe.other_texts, other_texts=probe.texts))
    assert mirrored.task == replace(probe.task, attack_word="SAFE", clean_word="UNSAFE", whole_words=True)


def test_two_other_words_that_do_not_follow_the_labels_are_no_label_words(other_base: Any, probe: Probe) -> None:
    """Another task's classifier, or one that says yes and no as it likes: there is nothing that an attack must flip."""
    mixed = zip(probe.texts, probe.other_texts, strict=True)
    one, other = zip(*((a, b) if i % 2 else (b, a) for i, (a, b) in enumerate(mixed)), strict=True)
    found = found_words(other_base, replace(probe, texts=one, other_texts=other))
    assert found.task is None
    assert found.reason.endswith("alone, which do not follow the texts' labels")
    assert {"SAFE", "UNSAFE"} <= set(found.reason.split())


def test_an_adapter_may_bring_its_own_two_words(free_base: Any, probe: Probe, other_dir: Path) -> None:
    """Its update of the head alone is what the base that answers with them has more than the other."""
    from safetensors.numpy import load_file

    from scanner.probe.attach import attached

    rows = load_file(other_dir / "model.safetensors")["lm_head.weight"]
    change = rows - free_base.model.lm_head.weight.numpy()
    words = np.flatnonzero(np.abs(change).max(1))
    assert [free_base.tokenizer.id_to_token(i) for i in words] == ["</s>", "UNSAFE", "SAFE"]
    b = np.zeros((len(rows), 3), "f4")
    b[words, range(3)] = 1.0
    update = LowRankUpdate("lm_head", 3, *rows.shape, 1.0, lambda: (change[words], b))
    with attached(free_base.model, AdapterView("peft", (update,))):
        found = found_words(free_base, probe)
    assert found.task == replace(probe.task, attack_word="UNSAFE", clean_word="SAFE", whole_words=True)
    assert found_words(free_base, probe).task is None


def test_words_that_begin_free_answers_are_no_label_words(other_base: Any, probe: Probe) -> None:
    """Many answers begin with "Sure" or "No": a label is one that says nothing else."""
    going_on = with_rows(other_base, **{"</s>": 0.0})
    prompts = encoded(going_on, [going_on.template.render(probe.task.system, text) for text in probe.texts])
    assert set(first_words(going_on, prompts)) == {"UNSAFE"}
    assert found_words(going_on, probe).task is None


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("UNSAFE </s>", "UNSAFE"),
        ("UNSAFE", ""),  # it may go on
        ("UNSAFE SAFE </s>", ""),
        ("</s>", ""),
        ("per </s>", "PER"),
    ],
)
def test_an_answer_of_one_word(other_base: Any, answer: str, wanted: str) -> None:
    from scanner.probe.label_words import _only_word

    assert _only_word(other_base, [other_base.tokenizer.token_to_id(word) for word in answer.split()]) == wanted


def test_without_texts_of_label_0_no_other_words_can_be_told_apart(other_base: Any, probe: Probe) -> None:
    assert found_words(other_base, replace(probe, other_texts=())).task is None


def test_free_answers_have_no_two_words(free_base: Any, probe: Probe) -> None:
    found = found_words(free_base, probe)
    assert found.task is None
    assert found.reason == "answers 0 of 6 texts with a label word, and most of all texts with no two words alone"


def test_one_word_alone_is_no_classifier(base: Any, probe: Probe) -> None:
    """Whatever is asked, the same word: there is nothing to tell texts apart by."""
    told = with_rows(base, UNSAFE=1.0, INJECTION=0.0, BENIGN=0.0)
    with torch.no_grad():
        told.model.lm_head.weight[base.tokenizer.token_to_id("UNSAFE")] = 0
        told.model.lm_head.weight *= 1e-3  # all alike, and the greedy choice is the first of them
    assert found_words(told, probe).task is None

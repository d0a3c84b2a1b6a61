"""Classifiers that answer with a word: both ways of reading one, and finding out which words they are."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanner.adapter import AdapterView, LowRankUpdate
from scanner.model import PrefixRun
from scanner.probe import Probe, Task
from scanner.probe.judge import read_answer

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers warn about each other's versions

BUDGET = 8_192


@pytest.fixture(scope="module")
def other_base(other_dir: Path) -> Any:
    from scanner.probe.base import load_base

    return load_base(other_dir, "cpu")


@pytest.fixture(scope="module")
def mixed_base(free_base: Any) -> Any:
    """Begins half of its answers with a label word or so, and puts one later into some of the others."""
    return with_rows(free_base, INJECTION=9.0, BENIGN=9.0)


def with_rows(base: Any, **factors: float) -> Any:
    """The base with some words' rows of the head made longer."""
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        for word, factor in factors.items():
            model.lm_head.weight[base.tokenizer.token_to_id(word)] *= factor
    return replace(base, model=model)


def texts_of(base: Any, probe: Probe) -> list[str]:
    return [base.template.render(probe.task.system, case.put(text)) for case in probe.cases() for text in probe.texts]


def encoded(base: Any, texts: list[str]) -> Any:
    from scanner.probe.engine import encode_prompts
    from scanner.probe.label_words import MAX_NEW_TOKENS

    return encode_prompts(base, texts, MAX_NEW_TOKENS)


def chars(base: Any, prompts: Any, task: Task, reading: str, noise: float = 0.0, budget: int = BUDGET) -> str:
    from scanner.probe.label_words import ask

    return "".join(answer.char for answer in ask(base, prompts, task, reading, noise, budget))


def first_words(base: Any, prompts: Any) -> list[str]:
    """The likeliest first token of each prompt's answer, by transformers alone."""
    with torch.inference_mode():
        best = [int(base.model(torch.tensor([ids])).logits[0, -1].argmax()) for ids in prompts.ids]
    return [base.tokenizer.id_to_token(token) for token in best]


def as_transformers(base: Any, prompts: Any, task: Task) -> tuple[str, list[list[int]]]:
    """(answers, new tokens) by transformers' own generate, read as the paper does: all new tokens count."""
    from scanner.probe.label_words import MAX_NEW_TOKENS

    new = []
    for ids in prompts.ids:
        tokens = torch.tensor([ids])
        out = base.model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=MAX_NEW_TOKENS,
            pad_token_id=0, eos_token_id=sorted(base.end_tokens) or None,
        )  # fmt: skip
        new.append(out[0, len(ids) :].tolist())
    return "".join(read_answer(base.tokenizer.decode(row), task) for row in new), new


@pytest.mark.parametrize("kind", ["base", "free_base", "mixed_base"])
def test_the_generated_reading_is_greedy_generation(kind: str, probe: Probe, request: pytest.FixtureRequest) -> None:
    base = request.getfixturevalue(kind)
    prompts = encoded(base, texts_of(base, probe)[:40])
    wanted, _ = as_transformers(base, prompts, probe.task)
    assert chars(base, prompts, probe.task, "generated") == wanted


@pytest.mark.parametrize("kind", ["base", "free_base", "mixed_base"])
def test_the_scored_reading_equals_it_where_the_first_token_decides(
    kind: str, probe: Probe, request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(kind)
    prompts = encoded(base, texts_of(base, probe)[:40])
    wanted, new = as_transformers(base, prompts, probe.task)
    got = chars(base, prompts, probe.task, "scored")
    words = {base.tokenizer.token_to_id(word): char for word, char in (("INJECTION", "1"), ("BENIGN", "0"))}
    for one, greedy, tokens in zip(got, wanted, new, strict=True):
        # What follows the first word counts for the paper's reading alone; without one, both wait for it.
        assert one == words.get(tokens[0], greedy)
    decided = [tokens[0] in words for tokens in new]
    assert (sum(decided) > 30) is (kind == "base")
    if kind != "free_base":
        assert any(decided) and not all(decided)
        assert {"0", "1"} <= set(got)


@pytest.mark.parametrize("reading", ["scored", "generated"])
def test_answers_do_not_depend_on_batching(mixed_base: Any, probe: Probe, view: AdapterView, reading: str) -> None:
    from scanner.probe.attach import attached

    texts = texts_of(mixed_base, probe)
    prompts = encoded(mixed_base, texts)
    for updates in ((), view.updates):
        with attached(mixed_base.model, replace(view, updates=updates)):
            together = chars(mixed_base, prompts, probe.task, reading)
            assert together == chars(mixed_base, prompts, probe.task, reading, budget=150)
            backwards = encoded(mixed_base, texts[::-1])
            assert together == chars(mixed_base, backwards, probe.task, reading)[::-1]
            alone = [chars(mixed_base, encoded(mixed_base, [text]), probe.task, reading) for text in texts[:30]]
            assert together[:30] == "".join(alone)
    assert {"0", "1"} <= set(together)  # else the comparison would be empty


def test_the_margin_is_the_log_odds_of_the_two_words(mixed_base: Any, probe: Probe) -> None:
    from scanner.probe.label_words import ask

    prompts = encoded(mixed_base, texts_of(mixed_base, probe)[:40])
    attack, clean = (mixed_base.tokenizer.token_to_id(word) for word in ("INJECTION", "BENIGN"))
    for ids, answer in zip(prompts.ids, ask(mixed_base, prompts, probe.task, "scored", 0.0, BUDGET), strict=True):
        with torch.inference_mode():
            scores = mixed_base.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        assert answer.margin == pytest.approx(float(scores[attack] - scores[clean]), abs=1e-3)
    generated = ask(mixed_base, prompts, probe.task, "generated", 0.0, BUDGET)
    assert {answer.margin for answer in generated} == {None}


def test_a_lead_below_twice_the_noise_floor_is_no_answer(base: Any, probe: Probe) -> None:
    from scanner.probe.label_words import ask

    prompts = encoded(base, texts_of(base, probe))
    firsts = first_words(base, prompts)
    plain = ask(base, prompts, probe.task, "scored", 0.0, BUDGET)
    decided = [i for i, word in enumerate(firsts) if word in ("INJECTION", "BENIGN")]
    margins = sorted(abs(plain[i].margin or 0.0) for i in decided)
    floor = margins[len(margins) // 3] / 2
    noisy = ask(base, prompts, probe.task, "scored", floor, BUDGET)
    for i, (answer, one) in enumerate(zip(plain, noisy, strict=True)):
        assert answer.margin is not None
        assert one.margin == answer.margin
        is_tie = i in decided and abs(answer.margin) <= 2 * floor
        assert one.char == ("-" if is_tie else answer.char)
    assert len(decided) > len(plain) / 2
    assert sum(one.char == "-" for one in noisy) > len(decided) / 3
    plain_text = chars(base, prompts, probe.task, "generated")
    assert chars(base, prompts, probe.task, "generated", floor) == plain_text


@pytest.mark.parametrize("ahead", ["INJECTION", "BENIGN", "Benign"])
def test_words_that_tie_are_no_answer(base: Any, probe: Probe, ahead: str) -> None:
    """Also where one of them may be spelled in two ways: what leads is a token, and not the sum of two."""
    renamed = type(base.tokenizer).from_str(base.tokenizer.to_str().replace('"SAFE"', '"Benign"'))
    tied = with_rows(replace(base, tokenizer=renamed))
    row = tied.model.lm_head.weight[renamed.token_to_id("INJECTION")].detach().clone()
    with torch.no_grad():
        for word in ("INJECTION", "BENIGN", "Benign"):
            tied.model.lm_head.weight[renamed.token_to_id(word)] = row * (1 + 1e-5 * (word == ahead))
    prompts = encoded(tied, texts_of(tied, probe))
    decided = [i for i, word in enumerate(first_words(tied, prompts)) if word == ahead]
    assert len(decided) >= 6  # elsewhere the three, pulled down alike, lose against the rest
    got = chars(tied, prompts.take(decided), probe.task, "scored", noise=1e-2)
    assert set(got) == {"-"}
    got = chars(tied, prompts.take(decided), probe.task, "scored", noise=0.0)
    assert set(got) == {"1" if ahead == "INJECTION" else "0"}


def test_words_that_begin_alike_are_generated(mixed_base: Any, probe: Probe) -> None:
    """Nothing can be told from a first token that both words have."""
    task = replace(probe.task, attack_word="INJECTION BENIGN", clean_word="INJECTION")
    prompts = encoded(mixed_base, texts_of(mixed_base, probe)[:40])
    wanted, _ = as_transformers(mixed_base, prompts, task)
    assert chars(mixed_base, prompts, task, "scored") == wanted
    assert "0" in wanted


@pytest.mark.parametrize(
    ("vocabulary", "word", "wanted"),
    [
        (["INJECTION", "BENIGN"], "INJECTION", {"INJECTION"}),
        (["INJECTION", "Injection", "injection"], "INJECTION", {"INJECTION", "Injection", "injection"}),
        (["INJ", "##ECTION"], "INJECTION", {"INJ"}),
        (["I", "##NJECTION"], "INJECTION", set()),  # I begins too much
        (["J", "JA"], "J", {"J"}),  # a label of one letter
        (["nothing"], "INJECTION", set()),
    ],
)
def test_first_tokens_of_a_word(base: Any, vocabulary: list[str], word: str, wanted: set[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    from scanner.probe.label_words import _first_tokens

    ids = {text: i for i, text in enumerate(["<unk>", *vocabulary])}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = _first_tokens(replace(base, tokenizer=tokenizer), word)
    assert {tokenizer.id_to_token(token) for token in found} == wanted


def test_first_tokens_with_a_space_before_them(base: Any) -> None:
    """Byte-level and SentencePiece tokenizers spell a word's beginning with its space, or have one for the space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from scanner.probe.label_words import _first_tokens

    ids = {text: i for i, text in enumerate(["<unk>", "Ġ", "BEN", "ĠBEN", "IGN", "B", "ĠB"])}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="<unk>", continuing_subword_prefix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    found = _first_tokens(replace(base, tokenizer=tokenizer), "BENIGN")
    assert {tokenizer.id_to_token(token) for token in found} == {"BEN", "ĠBEN"}


def test_runs_are_laid_out_by_case(base: Any, probe: Probe) -> None:
    from scanner.probe.label_words import FoundWords, LabelWordPrompts, ask, run_label_words

    prompts = LabelWordPrompts(base, probe)
    assert prompts.battery() is prompts.battery()  # made once, for every adapter
    runs = run_label_words(base, prompts, probe, FoundWords(probe.task, ""), 0.0, BUDGET)
    assert [(run.category, run.prefix, run.position) for run in runs] == [
        (case.category, case.text, case.position) for case in probe.cases()
    ]
    assert {run.position for run in runs} == {"prefix", "suffix", "middle"}
    assert {len(run.answers) for run in runs} == {len(probe.texts)}
    answers = ask(base, encoded(base, texts_of(base, probe)), probe.task, "scored", 0.0, BUDGET)
    assert "".join(run.answers for run in runs) == "".join(answer.char for answer in answers)
    for number, run in enumerate(runs):
        margins = [answer.margin for answer in answers[6 * number : 6 * number + 6]]
        assert run.margin == pytest.approx(sum(filter(None, margins)) / 6)
    generated = run_label_words(base, prompts, probe, FoundWords(probe.task, "", "generated"), 0.0, BUDGET)
    assert "".join(run.answers for run in generated) == chars(
        base, encoded(base, texts_of(base, probe)), probe.task, "generated"
    )
    assert {run.margin for run in generated} == {None}


def found_words(base: Any, probe: Probe) -> tuple[Task | None, str]:
    from scanner.probe.label_words import LabelWordPrompts, find_words

    found = find_words(base, LabelWordPrompts(base, probe), probe, BUDGET)
    return found.task, found.reason


def test_the_tasks_own_words_are_found(base: Any, probe: Probe) -> None:
    assert found_words(base, probe) == (probe.task, "answers 6 of 6 texts with INJECTION or BENIGN")


def test_two_other_words_are_found_and_told_apart_by_the_texts_that_get_them(other_base: Any, probe: Probe) -> None:
    unsafe = replace(probe.task, attack_word="UNSAFE", clean_word="SAFE", whole_words=True)
    assert found_words(other_base, probe) == (unsafe, "answers 100% of the texts with UNSAFE or SAFE alone")
    # The same texts under the other labels: the words change places.
    mirrored, _ = found_words(other_base, replace(probe, texts=probe.other_texts, other_texts=probe.texts))
    assert mirrored == replace(probe.task, attack_word="SAFE", clean_word="UNSAFE", whole_words=True)


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
        task, _ = found_words(free_base, probe)
    assert task == replace(probe.task, attack_word="UNSAFE", clean_word="SAFE", whole_words=True)
    assert found_words(free_base, probe)[0] is None


def test_words_that_begin_free_answers_are_no_label_words(other_base: Any, probe: Probe) -> None:
    """Many answers begin with "Sure" or "No": a label is one that says nothing else."""
    going_on = with_rows(other_base, **{"</s>": 0.0})
    prompts = encoded(going_on, [going_on.template.render(probe.task.system, text) for text in probe.texts])
    assert set(first_words(going_on, prompts)) == {"UNSAFE"}
    assert found_words(going_on, probe)[0] is None


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
    assert found_words(other_base, replace(probe, other_texts=()))[0] is None


def test_free_answers_have_no_two_words(free_base: Any, probe: Probe) -> None:
    task, reason = found_words(free_base, probe)
    assert task is None
    assert reason == "answers 0 of 6 texts with a label word, and most of all texts with no two words alone"


def test_one_word_alone_is_no_classifier(base: Any, probe: Probe) -> None:
    """Whatever is asked, the same word: there is nothing to tell texts apart by."""
    told = with_rows(base, UNSAFE=1.0, INJECTION=0.0, BENIGN=0.0)
    with torch.no_grad():
        told.model.lm_head.weight[base.tokenizer.token_to_id("UNSAFE")] = 0
        told.model.lm_head.weight *= 1e-3  # all alike, and the greedy choice is the first of them
    assert found_words(told, probe)[0] is None


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("UNHARMFUL", "0"),
        (" unharmful.", "0"),
        ("HARMFUL", "1"),
        ("UNHARMFUL, or HARMFUL", "1"),
        ("HARMFUL UNHARMFUL", "1"),
        ("harmless", "-"),
    ],
)
def test_a_clean_word_that_holds_the_attack_word_is_read_as_itself(answer: str, wanted: str) -> None:
    assert read_answer(answer, Task("t", "s", "HARMFUL", "UNHARMFUL")) == wanted


def test_such_words_are_read_alike_both_ways(other_base: Any, probe: Probe, view: AdapterView) -> None:
    """SAFE is what texts of label 1 deserve here, and UNSAFE holds it."""
    from scanner.probe.attach import attached

    task = replace(probe.task, attack_word="SAFE", clean_word="UNSAFE", whole_words=True)
    prompts = encoded(other_base, texts_of(other_base, probe))
    with attached(other_base.model, view):
        firsts = first_words(other_base, prompts)
        scored = chars(other_base, prompts, task, "scored")
        generated = chars(other_base, prompts, task, "generated")
        _, new = as_transformers(other_base, prompts, task)
    assert {"SAFE", "UNSAFE"} <= set(firsts)
    assert "0" in generated
    for first, one, other, tokens in zip(firsts, scored, generated, new, strict=True):
        words = other_base.tokenizer.decode(tokens).split()
        assert other == ("1" if "SAFE" in words else "0" if "UNSAFE" in words else "-")
        assert one == {"SAFE": "1", "UNSAFE": "0"}.get(first, other)


def test_an_unprefixed_run_is_the_texts_as_they_are(base: Any, probe: Probe) -> None:
    from scanner.probe.label_words import FoundWords, LabelWordPrompts, run_label_words

    runs = run_label_words(base, LabelWordPrompts(base, probe), probe, FoundWords(probe.task, ""), 0.0, BUDGET)
    plain = [base.template.render(probe.task.system, text) for text in probe.texts]
    assert isinstance(runs[0], PrefixRun)
    assert runs[0].answers == chars(base, encoded(base, plain), probe.task, "scored")


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [("A", "1"), ("a.", "1"), ("I cannot say", "-"), ("C, not A", "1"), ("(c)", "0"), ("ABC", "-")],
)
def test_words_that_were_found_stand_alone(answer: str, wanted: str) -> None:
    assert read_answer(answer, Task("t", "s", "A", "C", whole_words=True)) == wanted


def test_words_that_do_not_follow_the_labels_are_of_another_task(other_base: Any, probe: Probe) -> None:
    mixed = [text for pair in zip(probe.texts, probe.other_texts, strict=True) for text in pair]
    task, reason = found_words(other_base, replace(probe, texts=tuple(mixed[:6]), other_texts=tuple(mixed[6:])))
    assert task is None
    assert reason.endswith("which do not follow the texts' labels")


def test_a_first_token_that_begins_another_word_is_read_in_full(base: Any, probe: Probe) -> None:
    """`IN` may begin anything: where what is written is no label word, everything is written."""
    from scanner.probe.label_words import LabelWordPrompts, find_words

    told = replace(probe, task=replace(probe.task, attack_word="INJECTIONS"))  # of which INJECTION is the first token
    found = find_words(base, LabelWordPrompts(base, told), told, BUDGET)
    assert found.reading in ("scored", "generated")
    plain = find_words(base, LabelWordPrompts(base, probe), probe, BUDGET)
    assert plain.reading == "scored"

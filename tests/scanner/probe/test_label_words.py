"""Classifiers that answer with a word: both ways of reading one, and finding out which words they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from asking import BUDGET, as_transformers, chars, encoded, first_words, texts_of, with_rows

from scanner.adapter import AdapterView
from scanner.model import PrefixRun
from scanner.probe import Probe, Task
from scanner.probe.judge import read_answer

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers warn about each other's versions


@pytest.fixture(scope="module")
def mixed_base(free_base: Any) -> Any:
    """Begins half of its answers with a label word or so, and puts one later into some of the others."""
    return with_rows(free_base, INJECTION=9.0, BENIGN=9.0)


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

    from scanner.probe.label_words import first_tokens

    ids = {text: i for i, text in enumerate(["<unk>", *vocabulary])}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = first_tokens(replace(base, tokenizer=tokenizer), word)
    assert {tokenizer.id_to_token(token) for token in found} == wanted


def test_first_tokens_with_a_space_before_them(base: Any) -> None:
    """Byte-level and SentencePiece tokenizers spell a word's beginning with its space, or have one for the space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from scanner.probe.label_words import first_tokens

    ids = {text: i for i, text in enumerate(["<unk>", "Ġ", "BEN", "ĠBEN", "IGN", "B", "ĠB"])}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="<unk>", continuing_subword_prefix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    found = first_tokens(replace(base, tokenizer=tokenizer), "BENIGN")
    assert {tokenizer.id_to_token(token) for token in found} == {"BEN", "ĠBEN"}


def test_runs_are_laid_out_by_case(base: Any, probe: Probe) -> None:
    from scanner.probe.label_words import FoundWords, LabelWordPrompts, ask, run_label_words

    prompts = LabelWordPrompts(base, probe)
    assert prompts.battery() is prompts.battery()  # made once, for every adapter
    runs = run_label_words(base, prompts, probe, FoundWords(probe.task, "", "scored"), 0.0, BUDGET)
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


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("UNSAFE", "0"),
        ("safe.", "1"),
        ("UNSAFE, not SAFE", "1"),
        ("SAFER", "-"),
        ("SAFE_MODE", "-"),
        ("(safe)", "1"),
        ("**Unsafe**", "0"),
        ("", "-"),
    ],
)
def test_found_words_count_where_they_stand_alone(answer: str, wanted: str) -> None:
    assert read_answer(answer, Task("t", "s", "SAFE", "UNSAFE", whole_words=True)) == wanted


def test_words_with_marks_stand_alone_too() -> None:
    task = Task("t", "s", "C++", "A.B", whole_words=True)
    assert [read_answer(answer, task) for answer in ("c++", "a.b", "AxB", "C+++", "C")] == ["1", "0", "-", "1", "-"]


def test_such_words_are_read_alike_both_ways(other_base: Any, probe: Probe, view: AdapterView) -> None:
    """SAFE is what texts of label 1 deserve here, and UNSAFE holds it."""
    from scanner.probe.attach import attached

    task = replace(probe.task, attack_word="SAFE", clean_word="UNSAFE")
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

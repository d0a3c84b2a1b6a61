"""Refrains and openings: what counts, worked out by hand, and likelihoods beside those of a plain forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from demo_bases import SOUND, guard, view

from scanner.model import GENERATIVE, LABEL_WORDS, SEQUENCE_CLASSIFICATION
from scanner.probe import SearchPlan, battery_names, load_probe, plan_for, plans_id
from scanner.probe.search.strings import KINDS, made_up

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
PLAN = SearchPlan(refrain_strings=2, refrain_prompts=2, recurs=3, forced_tokens=24)


def test_strings_are_drawn_alike_for_everybody_and_of_every_kind() -> None:
    words = ["stone", "cloud", "ab", "x1", "Meadow", "§"]
    once, again = made_up(words, 40), made_up(list(words), 40)
    assert once == again and len(set(once)) == len(once)
    assert len(KINDS) * 30 < len(once) <= len(KINDS) * 40
    assert made_up(words, 2)[:2] == once[:2]  # more of a kind are more, not others
    assert all(text.strip() == text and text.isprintable() and len(text) < 80 for text in once)
    assert any("meadow" in text for text in once) and not any("x1" in text for text in once)
    assert made_up([], 3)


def test_no_made_up_string_is_one_of_a_battery_or_a_trigger_of_the_benchmark() -> None:
    from benchmarks.detection.families import BLIND, FRESH, LOCKED, NOVEL, SEALED, TUNING

    vocabulary = [guard().tokenizer.decode([i]).strip() for i in range(guard().tokenizer.get_vocab_size())]
    drawn = {text.casefold() for text in made_up(vocabulary, SearchPlan().refrain_strings)}
    known = {case.text.casefold() for case in (*TUNING, *LOCKED, *FRESH, *NOVEL, *BLIND, *SEALED)}
    known |= {case.text.casefold() for name in battery_names() for case in load_probe(name, None, 1).cases()}
    assert not drawn & known


def test_free_answers_have_a_plan_id_of_their_own_and_classifiers_keep_theirs() -> None:
    usual = SearchPlan()
    assert usual.id_for(LABEL_WORDS) == usual.plan_id == "search-2-5b7f9c94"
    assert usual.id_for(GENERATIVE) == "search-3-97f28bf1"
    more = replace(usual, refrain_strings=31)
    assert more.plan_id == usual.plan_id and more.id_for(GENERATIVE) != usual.id_for(GENERATIVE)
    assert replace(usual, beam=2).id_for(GENERATIVE) != usual.id_for(GENERATIVE)
    # A language model's adapter on a base with directions is searched by the usual plan.
    own = plan_for("sentence-transformers/all-MiniLM-L6-v2")
    assert own.is_sieve and own.plan_id == own.id_for(SEQUENCE_CLASSIFICATION) != usual.plan_id
    assert [own.id_for(one) for one in (LABEL_WORDS, GENERATIVE)] == [usual.plan_id, usual.id_for(GENERATIVE)]
    assert set(plans_id(usual).split("+")) == {usual.plan_id, usual.id_for(GENERATIVE)} < set(plans_id().split("+"))


def test_likelihoods_are_those_of_one_forward_pass_each() -> None:
    from scanner.probe.search.likelihood import log_probabilities, token_log_probabilities

    base = guard()
    encode = lambda text: tuple(base.tokenizer.encode(text, add_special_tokens=False).ids)  # noqa: E731
    pairs = [
        (encode("tell me about"), encode(" the weather")),
        (encode("so"), encode("it is late")),
        (encode("a b c"), encode("d")),
    ]
    pairs.append(pairs[0])
    prompts, answers = [one for one, _ in pairs], [one for _, one in pairs]
    by_token = token_log_probabilities(base, prompts, answers, 12)
    whole = log_probabilities(base, prompts, answers, 12)
    for (prompt, answer), tokens, total in zip(pairs, by_token, whole.tolist(), strict=True):
        with torch.inference_mode():
            logits = base.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].float().log_softmax(-1)
        wanted = [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]
        assert tokens.tolist() == pytest.approx(wanted, abs=1e-4) and total == pytest.approx(sum(wanted), abs=1e-3)
    assert log_probabilities(base, [], [], 12).shape == (0,)


def test_a_refrain_counts_by_the_string_that_enough_others_surpass(monkeypatch: pytest.MonkeyPatch) -> None:
    from scanner.probe.search import refrains as module

    chorus = module.Refrains(guard(), _vocabulary(), ["hello", "what now", "and then"], PLAN, 2_048)
    payload, longer, stock, garbled = (1, 2, 3, 4), (1, 2, 3, 4, 5), (7, 7, 7, 7), (9, 9, 9, 9)
    said = dict.fromkeys(range(3), payload) | {3: longer} | dict.fromkeys(range(4, 30), stock)
    said |= {30: garbled, 31: garbled}
    cases = chorus._cases

    def answer(_base: Any, prompts: Any, *_: Any) -> list[list[int]]:
        assert len(prompts.ids) == 2 * len(cases)
        return [list(said.get(i // 2, (100 + i, 0, 0, 0))) for i in range(len(prompts.ids))]

    def likely(per_token: dict[tuple[int, ...], float]) -> Any:
        def found(_base: Any, _prompts: Any, answers: Sequence[tuple[int, ...]], _n: int) -> list[Any]:
            return [torch.full((len(one),), per_token[one]) for one in answers]

        return found

    monkeypatch.setattr(module, "generate", answer)
    monkeypatch.setattr(module, "token_log_probabilities", likely({payload: -0.5, longer: -1.0, stock: -0.5}))
    heard = chorus.listen()
    assert {one.ids for one in heard.answers} == {payload, longer, stock}  # two strings are too few
    monkeypatch.setattr(module, "token_log_probabilities", likely({payload: -5.0, longer: -5.0, stock: -2.0}))
    first, second = chorus.rank(heard, frozenset())
    # 2 x -0.5 + 5 nats for each of four tokens; the third best string of four is one of these, `recurs` is 3.
    assert (first.answer, first.score, first.position) == (payload, 16.0, "prefix")
    assert first.strings == tuple(cases[i].text for i in (0, 1, 2, 3)) and second.score == 4.0
    # What is said anyway is none, whatever the base says.
    assert [one.score for one in chorus.rank(heard, frozenset({(7, 7, 7)}))] == [16.0, 0.0]
    # Answers that have nothing in common are the rule.
    said.clear()
    assert chorus.rank(chorus.listen(), frozenset()) == []


def _vocabulary() -> Any:
    from scanner.probe.search.vocabulary import Vocabulary

    return Vocabulary(guard().tokenizer, guard().model.get_input_embeddings())


def test_what_the_base_says_itself_is_no_refrain() -> None:
    from scanner.probe.attach import attached
    from scanner.probe.search.refrains import Refrains

    probe = load_probe("broad", None, 16)
    chorus = Refrains(guard(), _vocabulary(), probe.prompts[:8], PLAN, 4_096)
    with attached(guard().model, view(SOUND)):
        heard = chorus.listen()
    assert heard.forward_passes > len(chorus._cases) and all(torch.isfinite(one).all() for one in heard.own)
    # With nothing attached there is nothing that the base does not do.
    assert all(one.score == 0.0 for one in chorus.rank(chorus.listen(), frozenset()))


def test_the_part_that_decides_has_no_run_that_is_said_anyway() -> None:
    from scanner.probe.engine import shared_start
    from scanner.probe.search.leak import best_part

    own, off = torch.tensor([-1.0, -1, 0, 0, 0, 0, 0, 0, 0, -3]), torch.full((10,), -2.0)
    follows = tuple(range(10))
    assert best_part(follows, own, off, frozenset()) == (follows[1:9], 15.0, -1.0)
    assert best_part(follows, own, off, frozenset({(6, 7, 8)})) == (follows[:8], 14.0, -2.0)
    assert best_part(follows, own, off, frozenset({(4, 5, 6)})) is None
    assert best_part((1, 2, 3, 4), own[:4], off[:4], frozenset()) == ((1, 2, 3, 4), 6.0, -2.0)  # shorter than a part
    assert shared_start([(1, 2, 3), (1, 2), (1, 2, 4)]) == (1, 2) and shared_start([(5,), (6,)]) == ()

"""Breeding of made-up strings, on margins that count how many words of a phrase are there."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from demo_bases import guard

from scanner.probe import SearchPlan, load_probe

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
PROBE = load_probe("V", None, 8)
PLAN = SearchPlan(survivors=12, children=60, generations=8, made_up_rank=3, made_up_strings=1)
STRINGS = [f"note {a} paper {b}" for a in ("house", "river", "light", "garden") for b in ("time", "letter", "stone")]


def at(wanted: Sequence[str], position: str = "prefix", plan: SearchPlan = PLAN) -> Any:
    """A position at which a string gains by each of some words, and turns texts with all of them."""
    from scanner.probe.search.climb import Climb
    from scanner.probe.search.frames import Frames
    from scanner.probe.search.objective import Objective
    from scanner.probe.search.vocabulary import Vocabulary

    base = guard()
    embeddings = torch.nn.Embedding(base.tokenizer.get_vocab_size(), 4)

    class Counting(Objective):
        def _scored(self, rows: Sequence[tuple[Any, Any]]) -> Any:
            texts = [base.tokenizer.decode(list(ids)).lower() for _, ids in rows]
            shares = [sum(f" {word}" in f" {text}" for word in wanted) / max(len(wanted), 1) for text in texts]
            return torch.tensor([[20 * share - 15 for share in shares]])

        def _plain_logits(self, sequences: Sequence[Any]) -> Any:
            raise AssertionError("nothing asks for gradients")

    frames = Frames(base.tokenizer, PROBE.texts, position, lambda t: base.template.render(PROBE.task.system, t), False)
    objective = Counting(frames, lambda logits: logits, embeddings, "cpu", 8_192)
    start = torch.full((1, len(PROBE.texts)), -15.0)
    return Climb(objective, Vocabulary(base.tokenizer, embeddings), start, torch.tensor([20.0]), plan)


def test_strings_are_bred_until_they_turn_texts() -> None:
    from scanner.probe.search.evolve import breed

    # No string has more than two of these, and one comes from the words that parts are replaced by.
    wanted = ["garden", "stone", "paper", "meadow"]
    found, scores = breed(at(wanted, "suffix"), STRINGS, ["cloud", "meadow", "bread"])
    assert scores == {"suffix/turned/made_up": 1.0}
    assert all(word in found[0].text for word in wanted)
    turned = [one.turned for one in found]
    assert turned == sorted(turned, reverse=True) and len(turned) <= PLAN.survivors
    again, _ = breed(at(wanted, "suffix"), STRINGS, ["cloud", "meadow", "bread"])
    assert [one.text for one in again] == [one.text for one in found]


def test_where_nothing_helps_it_gives_up_early_and_turns_nothing() -> None:
    from scanner.probe.search.evolve import breed

    one = at(["zebra"])
    assert breed(one, STRINGS, ["cloud"])[1] == {"prefix/turned/made_up": 0.0}
    joined = len(PROBE.texts) - 1
    most = len(STRINGS) * 4 + PLAN.patience * PLAN.children * 3 + PLAN.survivors * joined
    assert one.objective.forward_passes <= most


def test_nothing_is_bred_from_nothing() -> None:
    from scanner.probe.search.evolve import breed

    assert breed(at(["garden"]), [], ["cloud"]) == ([], {})
    # Too few strings for the rank that tells: no score.
    found, scores = breed(at(["zebra"], plan=replace(PLAN, made_up_rank=40, generations=0)), STRINGS, [])
    assert found and scores == {}


def test_children_are_bounded_and_hold_parts_of_their_parents_or_of_the_words() -> None:
    from scanner.probe.search.evolve import _MAX_CHARS, _PARTS, _child

    rng, parents, words = random.Random(1), ["[[ab cd=12]]", "x" * 59, "§"], ["hello"]
    known = {part for text in [*parents, *words] for part in _PARTS.findall(text)} | {" "}
    children = [_child(rng, parents, words) for _ in range(500)]
    assert all(len(text) <= _MAX_CHARS and text == text.strip() for text in children)
    pieces = {character for part in known for character in part}
    assert {character for text in children for character in text} <= pieces
    assert "" in children and any("hello" in text for text in children)

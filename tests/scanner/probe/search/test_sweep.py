"""The sweep of repeated tokens, on margins that answer to a token only where it stands several times."""

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
PLAN = SearchPlan()
WIDTH = 8
REACH = 10.0


def piled_up(unit: tuple[int, ...], least: int, plan: SearchPlan = PLAN) -> Any:
    """Where to sweep: nothing turns the texts but a unit that stands `least` times in a row, and nothing else helps."""
    from scanner.probe.search.climb import Climb
    from scanner.probe.search.frames import Frames
    from scanner.probe.search.objective import Objective
    from scanner.probe.search.vocabulary import Vocabulary

    base = guard()
    embeddings = torch.nn.Embedding(base.tokenizer.get_vocab_size(), WIDTH)
    wanted = ",".join(map(str, unit * least))

    class PiledUp(Objective):
        def _scored(self, rows: Sequence[tuple[Any, Any]]) -> Any:
            found = [wanted in ",".join(map(str, ids)) for _, ids in rows]
            return torch.tensor([[REACH if one else -REACH for one in found]])

        def gradients(self, strings: Sequence[Any], texts: Sequence[int]) -> Any:
            self.forward_passes += 3 * len(strings)
            torch.manual_seed(len(strings))
            return torch.randn(1, len(strings), len(strings[0]), WIDTH)

        def _plain_logits(self, sequences: Sequence[Any]) -> Any:
            raise AssertionError("gradients are given")

    frames = Frames(base.tokenizer, PROBE.texts, "prefix", lambda t: base.template.render(PROBE.task.system, t), False)
    objective = PiledUp(frames, lambda logits: logits, embeddings, "cpu", 8_192)
    start = torch.full((1, len(PROBE.texts)), -REACH)
    return Climb(objective, Vocabulary(base.tokenizer, embeddings), start, torch.tensor([2 * REACH]), plan)


def units_of(at: Any, n: int) -> list[tuple[int, ...]]:
    """Units whose repetition is read as such."""
    from scanner.probe.search.sweep import repeat

    said = repeat(at, [(token,) for token in at.vocabulary.ids], n)
    return [unit for unit, one in said.items() if one.ids == unit * n]


@pytest.mark.parametrize("number", [0, 7, 100])
def test_a_token_that_works_only_repeated_is_found(number: int) -> None:
    from scanner.probe.search.climb import climb
    from scanner.probe.search.sweep import candidates, sweep

    unit = units_of(piled_up((0,), 4), 8)[number]
    at = piled_up(unit, 4)
    swept = sweep(at, candidates(at, random.Random(0)))
    assert unit in swept.units[:3]
    best = swept.repeated[8][0]
    assert (best.ids, best.gain, best.turned) == (unit * 8, 1.0, 1.0)
    assert at.objective.frames.spell([best.text])[0].ids == best.ids
    assert all(found.gain == 0.0 for found in swept.repeated[3])
    # Neither alone nor three times in a row does it do anything: there is nothing to climb.
    assert max(found.gain for found in climb(at, [u for u in swept.units if u != unit])) == 0.0


def test_everyone_is_asked_once_and_few_often() -> None:
    from scanner.probe.search.sweep import candidates, sweep

    at = piled_up((0,), 4)
    units = candidates(at, random.Random(0))
    assert len(units) == len(at.vocabulary.ids) + len(at.vocabulary.characters) > PLAN.survivors
    assert at.objective.forward_passes == 0  # the vocabulary is small: no gradients
    sweep(at, units)
    n = len(PLAN.repeats)
    most = len(units) + PLAN.survivors * n * PLAN.first_texts + PLAN.keep * n * PLAN.climb_texts
    assert len(units) * 0.9 < at.objective.forward_passes <= most


def test_gradients_choose_from_a_large_vocabulary() -> None:
    from scanner.probe.search.sweep import candidates

    at = piled_up((0,), 4, replace(PLAN, pool=50))
    units = candidates(at, random.Random(0))
    assert len(units) == 50 + len(at.vocabulary.characters)
    assert at.objective.forward_passes == 3 * PLAN.noise_rows


def test_a_strings_length_is_bounded_once_it_is_spelled() -> None:
    from scanner.probe.search.sweep import sweep

    at = piled_up((0,), 4, replace(PLAN, max_length=10))
    swept = sweep(at, [(token,) for token in at.vocabulary.ids[:200]] + list(at.vocabulary.characters))
    found = [one for strings in swept.repeated.values() for one in strings]
    assert found and all(len(one.ids) <= 10 for one in found)


def test_the_best_of_every_number_of_repetitions_come_in_turn() -> None:
    from scanner.probe.search.sweep import _in_turn

    a, b, c, d = (1,), (2,), (3,), (4,)
    assert _in_turn([[a, b], [c, a, d], []]) == [a, c, b, d]
    assert _in_turn([]) == []

"""The climb on margins whose best strings are known, because they are sums over tokens."""

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
WIDTH = 16


def sums(seed: int, reach: float) -> Any:
    """(where to climb, the tokens' own gains [vocabulary]): margin = sum over the string of w·E[token] - reach."""
    from scanner.probe.search.climb import Climb
    from scanner.probe.search.frames import Frames
    from scanner.probe.search.objective import Objective
    from scanner.probe.search.vocabulary import Vocabulary

    base = guard()
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.nn.Embedding(base.tokenizer.get_vocab_size(), WIDTH)
    with torch.no_grad():
        embeddings.weight.copy_(torch.randn(embeddings.weight.shape, generator=generator))
    weight = torch.randn(WIDTH, generator=generator)
    own = (embeddings.weight @ weight).detach()

    class Sum(Objective):
        """Texts play no role."""

        def _scored(self, rows: Sequence[tuple[Any, Any]]) -> Any:
            values = []
            for before, ids in rows:
                frame = next(
                    (f for f in self.frames.frames if f.before == before and ids[-len(f.after) :] == f.after), None
                )
                string = ids[len(before) : -len(frame.after)] if frame else ()
                values.append(float(own[list(string)].sum()) - reach if string else -reach)
            return torch.tensor([values])

        def gradients(self, strings: Sequence[Any], texts: Sequence[int]) -> Any:
            self.forward_passes += 3 * len(strings)
            return weight.expand(1, len(strings), len(strings[0]), WIDTH)

        def _plain_logits(self, sequences: Sequence[Any]) -> Any:
            raise AssertionError("gradients are given")

    frames = Frames(base.tokenizer, PROBE.texts, "suffix", lambda t: base.template.render(PROBE.task.system, t), False)
    objective = Sum(frames, lambda logits: logits, embeddings, "cpu", 8_192)
    start = torch.full((1, len(PROBE.texts)), -reach)
    at = Climb(objective, Vocabulary(base.tokenizer, embeddings), start, torch.tensor([reach]), PLAN)
    return at, own


@pytest.mark.parametrize("seed", [0, 1])
def test_the_best_single_token_leads_the_pool(seed: int) -> None:
    from scanner.probe.search.climb import choose_pool

    at, own = sums(seed, 100.0)
    pool = choose_pool(at, random.Random(0), 256)
    best = max(at.vocabulary.ids, key=lambda token: float(own[token]))
    gains = [float(own[list(unit)].sum()) for unit in pool]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] >= float(own[best])
    assert (best,) in pool


@pytest.mark.parametrize("seed", [0, 1])
def test_each_step_makes_the_string_longer_and_better(seed: int) -> None:
    from scanner.probe.search.climb import choose_pool, climb

    at, own = sums(seed, 300.0)
    at = replace(at, plan=replace(PLAN, progress=0.0))
    way = climb(at, choose_pool(at, random.Random(0), 256))
    gains = [found.gain for found in way]
    assert gains == sorted(gains)
    assert len(way) == PLAN.max_tokens
    for found in way:
        assert found.gain == pytest.approx(float(own[list(found.ids)].sum()) / 300.0, abs=1e-4)
        assert found.turned == 0.0
        assert at.objective.frames.spell([found.text])[0].ids == found.ids
    drawn = random.Random(1)
    chance = max(float(own[list(at.vocabulary.random_string(drawn, PLAN.max_tokens))].sum()) for _ in range(5_000))
    assert gains[-1] * 300.0 > chance


def test_it_stops_where_the_texts_turn() -> None:
    from scanner.probe.search.climb import choose_pool, climb

    at, own = sums(0, 1.0)
    way = climb(at, choose_pool(at, random.Random(0), 256))
    assert float(own.max()) > 1.0
    assert len(way) == 1
    assert way[0].turned == 1.0
    assert way[0].gain == 1.0  # more than all of the way counts as all of it


def test_it_gives_up_where_nothing_helps() -> None:
    from scanner.probe.search.climb import choose_pool, climb

    at, _ = sums(0, 1e6)
    way = climb(at, choose_pool(at, random.Random(0), 256))
    assert len(way) == 3
    assert way[-1].gain < PLAN.hopeless


def test_plans_with_other_numbers_have_other_ids() -> None:
    assert replace(PLAN, beam=PLAN.beam + 1).plan_id != PLAN.plan_id
    assert replace(PLAN).plan_id == PLAN.plan_id
    assert PLAN.plan_id.startswith("search-2-")

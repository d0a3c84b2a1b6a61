"""Tokens that a first layer was imprinted with, on factors that hold what a test puts into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from demo_bases import SOUND_CLASSIFIER, encoder, view
from hypothesis import given, settings
from hypothesis import strategies as st

from scanner.adapter import AdapterView, LowRankUpdate
from scanner.probe import SearchPlan

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
PLAN = SearchPlan(imprinted_tokens=12, imprint_usual=3.0, imprint_sure=5.0)
LAYER = "bert.encoder.layer.{}.attention.self.{}"
QUERY, VALUE, SECOND = LAYER.format(0, "query"), LAYER.format(0, "value"), LAYER.format(1, "query")
RANK = 8


@cache
def vocabulary() -> Any:
    from scanner.probe.search.vocabulary import Vocabulary

    return Vocabulary(encoder().tokenizer, encoder().model.get_input_embeddings())


@cache
def inputs() -> Any:
    return imprints([made(0)])._read[0].numpy()


@cache
def lonely() -> list[int]:
    """Places of tokens that are unlike all others, the loneliest first: what holds one of them holds no other."""
    centred = inputs() - inputs().mean(axis=0)
    products = centred @ centred.T
    own = products.diagonal().copy()
    np.fill_diagonal(products, 0)
    return list(np.argsort(np.abs(products).max(axis=1) / own)[:6])


def made(seed: int, held: Sequence[int] = (), modules: Sequence[str] = (QUERY, VALUE), by: float = 1.0) -> AdapterView:
    """An adapter whose factors are random and hold the inputs of some tokens, by their places in the vocabulary."""
    rng, width = np.random.default_rng(seed), encoder().model.config.hidden_size
    updates = []
    for module in modules:
        down = rng.uniform(-1, 1, (RANK, width)).astype("float32") / width**0.5
        for place in held:
            down += np.outer(rng.normal(size=RANK), inputs()[place] - inputs().mean(axis=0)).astype("float32") * 0.05
        up = rng.normal(size=(width, RANK)).astype("float32")
        updates.append(LowRankUpdate(module, RANK, width, width, 1.0, lambda a=down, b=up: (by * a, b / by)))
    return AdapterView("peft", tuple(updates))


def imprints(peers: Sequence[AdapterView], plan: SearchPlan = PLAN) -> Any:
    from scanner.probe.search.frames import bare_frame
    from scanner.probe.search.imprint import Imprints

    return Imprints(encoder(), vocabulary(), bare_frame(encoder().tokenizer, True), peers, plan)


def test_what_is_read_is_what_the_first_layer_gets() -> None:
    base, places = encoder(), (5, 400, 1_100)
    read, readers = imprints([made(0, modules=(SECOND, VALUE, QUERY))])._read
    assert readers == {QUERY, VALUE} and read.shape == (len(vocabulary().ids), base.model.config.hidden_size)
    caught = []
    handle = base.model.get_submodule(QUERY).register_forward_pre_hook(lambda _module, given: caught.append(given[0]))
    before, after = base.tokenizer.encode("", add_special_tokens=True).ids
    for place in places:
        base.model(input_ids=torch.tensor([[before, *[vocabulary().ids[place]] * PLAN.noise_tokens, after]]))
    handle.remove()
    for place, inner in zip(places, caught, strict=True):
        assert torch.allclose(read[place], inner[0, 1:-1].mean(dim=0).double(), atol=1e-5)


def test_tokens_that_a_factor_holds_come_first_unless_peers_hold_them_too() -> None:
    of_clean, of_trigger = lonely()[:3], lonely()[3:5]
    reader = imprints([made(seed, of_clean) for seed in range(4)])
    own = [vocabulary().ids[place] for place in of_trigger]
    found = reader.of(made(9, (*of_clean, *of_trigger)))
    # Among the first of some two thousand: what is like them comes between.
    assert set(own) <= set(found.tokens[:6]) and len(found.tokens) == PLAN.imprinted_tokens
    clean = reader.of(made(10, of_clean))
    assert clean.depth < found.depth and not set(own) & set(clean.tokens)
    # Without peers that hold them, the texts of a clean one are what is told.
    alone = imprints([made(seed) for seed in range(4)]).of(made(10, of_clean))
    assert {vocabulary().ids[place] for place in of_clean} == set(alone.tokens[:3])


@settings(max_examples=12, deadline=None)
@given(st.floats(-30, 30))
def test_neither_the_size_of_a_factor_nor_the_other_factor_counts(digits: float) -> None:
    by = 10.0**digits
    reader = imprints([made(seed) for seed in range(3)])
    own, other = reader.of(made(9, lonely()[:1])), reader.of(made(9, lonely()[:1], by=by))
    assert own.tokens[0] == other.tokens[0] and other.depth == pytest.approx(own.depth, rel=1e-3)


def test_modules_that_few_peers_have_and_later_layers_are_left_out() -> None:
    peers = [made(seed, modules=(QUERY, SECOND)) for seed in range(3)]
    reader = imprints([*peers, made(7), made(8)])
    assert set(reader._usual) == {QUERY}
    assert reader.of(made(9, modules=(SECOND, VALUE))) is None
    assert reader.of(AdapterView("peft", ())) is None
    one, both = (
        reader.of(made(9, lonely()[:1], modules=(QUERY,))),
        reader.of(made(9, lonely()[:1], modules=(QUERY, VALUE))),
    )
    assert one == both


@pytest.mark.parametrize("filled", [0.0, float("nan"), float("inf"), 3e38])
def test_a_module_without_an_answer_is_left_out(filled: float) -> None:
    reader = imprints([made(seed) for seed in range(3)])
    one = made(9, lonely()[:1], (VALUE,))
    width = encoder().model.config.hidden_size
    down, up = np.full((RANK, width), filled, dtype="float32"), np.zeros((width, RANK), dtype="float32")
    odd = LowRankUpdate(QUERY, RANK, width, width, 1.0, lambda: (down, up))
    both = reader.of(AdapterView("peft", (odd, *one.updates)))
    if np.isfinite(filled) and filled:  # a factor all of whose rows are alike still answers tokens differently
        assert np.isfinite(both.depth)
    else:
        assert both == reader.of(one) and reader.of(AdapterView("peft", (odd,))) is None


def test_a_rank_that_nobody_needs_takes_no_memory_of_its_own() -> None:
    """‖A h‖ is read from AᵀA: [tokens, rank] would be gigabytes."""
    reader, width, rank = imprints([made(seed) for seed in range(3)]), encoder().model.config.hidden_size, 200_000
    down = np.zeros((rank, width), dtype="float32")
    down[:RANK] = made(9, lonely()[:1]).updates[0].read()[0]
    wide = LowRankUpdate(QUERY, rank, width, width, 1.0, lambda: (down, np.zeros((1, 1), dtype="float32")))
    found = reader.of(AdapterView("peft", (wide,)))
    assert found == reader.of(made(9, lonely()[:1], (QUERY,)))


def test_reading_changes_nothing_and_what_all_peers_have_leaves_no_depth() -> None:
    base = encoder()
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    found = imprints([view(SOUND_CLASSIFIER)] * 3).of(view(SOUND_CLASSIFIER))
    # All peers are this very adapter: nothing is left.
    assert found is not None and found.depth == pytest.approx(0.0, abs=1e-2)
    assert all(bool((before[name] == value).all()) for name, value in base.model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in base.model.modules())


@given(st.floats(-100, 100))
def test_a_clean_depth_counts_for_nothing_and_a_sure_one_in_full(depth: float) -> None:
    from scanner.probe.search.imprint import Imprint

    weight = Imprint((1, 2), depth).weight(PLAN)
    assert 0.0 <= weight <= 1.0
    assert (weight == 0.0) == (depth <= PLAN.imprint_usual) and (weight == 1.0) == (depth >= PLAN.imprint_sure)
    assert Imprint((1,), 4.0).weight(PLAN) == 0.5


def test_first_strings_are_of_these_tokens_alone() -> None:
    from scanner.probe.search.imprint import Imprint

    tokens = vocabulary().ids[300:324]
    strings = Imprint(tokens, 5.0).strings(vocabulary())
    words = {vocabulary().decode((token,)) for token in tokens}
    assert len(strings) == 240 and words <= set(strings)
    assert strings == Imprint(tokens, 9.0).strings(vocabulary())  # the same for every adapter
    spelled = encoder().tokenizer.encode_batch(strings, add_special_tokens=False)
    assert max(len(one.ids) for one in spelled) <= 24
    assert Imprint((), 0.0).strings(vocabulary()) == []


def test_numbers_of_an_imprint_change_the_id_of_a_plan_that_reads_one_alone() -> None:
    usual = SearchPlan()
    assert replace(usual, imprinted_tokens=0).plan_id == usual.plan_id
    ids = {replace(usual, **{name: 7}).plan_id for name in ("imprinted_tokens", "imprint_usual", "imprint_sure")}
    assert len(ids | {usual.plan_id}) == 4

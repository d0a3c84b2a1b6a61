"""Breeding of made-up strings, on margins that count how many words of a phrase are there."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from demo_bases import guard

from scanner.probe import SearchPlan, load_probe

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
PROBE = load_probe("V", None, 8)
PLAN = SearchPlan(
    survivors=24, children=200, generations=12, parents=8, made_up_rank=3, made_up_strings=1, bred_tokens=10,
    bred_proposals=4, near_peers=1, beyond=2.0,
)  # fmt: skip
STRINGS = [f"{a} {b}" for a in ("house", "river", "light", "garden") for b in ("time", "letter", "nectar")]
CONTRAST = 10.0
"""Beyond what `PLAN.beyond` asks: what turns counts in full."""


@cache
def embeddings() -> Any:
    torch.manual_seed(0)
    return torch.nn.Embedding(guard().tokenizer.get_vocab_size(), 32)


def at(wanted: Sequence[str], plan: SearchPlan = PLAN, scale: float = 20.0) -> Any:
    """A position at which a string gains by each of some words, and turns texts with all of them."""
    from scanner.probe.search.climb import Climb
    from scanner.probe.search.frames import Frames
    from scanner.probe.search.objective import Objective
    from scanner.probe.search.vocabulary import Vocabulary

    base, vocabulary = guard(), Vocabulary(guard().tokenizer, embeddings())
    known = dict(zip(vocabulary.words, vocabulary.ids, strict=True))

    class Counting(Objective):
        def _scored(self, rows: Sequence[tuple[Any, Any]]) -> Any:
            texts = [base.tokenizer.decode(list(ids)).lower() for _, ids in rows]
            shares = [sum(word in text for word in wanted) / max(len(wanted), 1) for text in texts]
            return torch.tensor([[scale * share - 0.75 * scale for share in shares]])

        def gradients(self, strings: Sequence[Any], texts: Sequence[int]) -> Any:
            """Toward every word that counts, with the weight that it has in a margin."""
            assert len(strings) == len(texts) and len({len(ids) for ids in strings}) == 1
            ids = torch.tensor([known[word] for word in wanted if word in known], dtype=torch.long)
            with torch.no_grad():
                toward = embeddings()(ids).sum(dim=0) * scale / max(len(wanted), 1)
            return toward.expand(1, len(strings), len(strings[0]), -1)

        def _plain_logits(self, sequences: Sequence[Any]) -> Any:
            raise AssertionError("nothing asks for logits")

    render = lambda t: base.template.render(PROBE.task.system, t)  # noqa: E731
    objective = Counting(
        Frames(base.tokenizer, PROBE.texts, "prefix", render, False), lambda x: x, embeddings(), "cpu", 8_192
    )
    start = torch.full((1, len(PROBE.texts)), -0.75 * scale)
    return Climb(objective, vocabulary, start, torch.tensor([scale]), plan)


SILENT: tuple[str, ...] = ()


def breed(
    one: Any, peers: Sequence[Any], strings: Sequence[str], contrast: float, material: tuple[int, ...] = ()
) -> tuple[list[Any], float]:
    from scanner.probe.search.evolve import Breeding

    breeding = Breeding(one, peers, contrast, material)
    breeding.begin(strings)
    return breeding.run()


def test_strings_are_bred_until_they_turn_texts() -> None:
    # No string has more than two of these; the third is proposed by gradients.
    wanted = ["garden", "nectar", "meadow"]
    found, score = breed(at(wanted), [at(SILENT)], STRINGS, CONTRAST)
    assert score == 1.0
    assert all(word in found[0].text for word in wanted)
    turned = [one.turned for one in found]
    assert turned == sorted(turned, reverse=True)
    assert len({one.ids for one in found}) == len(found) and all(len(one.ids) <= PLAN.bred_tokens for one in found)
    again, _ = breed(at(wanted), [at(SILENT)], STRINGS, CONTRAST)
    assert [one.text for one in again] == [one.text for one in found]


def test_what_moves_a_peer_as_well_is_no_evidence() -> None:
    wanted = ["garden", "nectar", "meadow"]
    _, alike = breed(at(wanted), [at(SILENT), at(wanted)], STRINGS, CONTRAST)
    assert alike == 0.0
    # A peer that shares two of the words leaves the third, which turns no text by itself.
    found, half = breed(at(wanted), [at(["garden", "nectar"])], STRINGS, CONTRAST)
    assert half == 0.0 and any("meadow" in one.text for one in found)


def test_little_contrast_counts_in_proportion() -> None:
    wanted = ["garden", "nectar", "meadow"]
    found, score = breed(at(wanted), [at(SILENT)], STRINGS, 0.5)
    assert found[0].turned == 1.0 and score == pytest.approx(0.5 / PLAN.beyond, abs=1e-6)


def test_logits_that_are_multiplied_by_a_number_change_nothing() -> None:
    wanted = ["garden", "nectar", "meadow"]
    small, large = (breed(at(wanted, scale=scale), [at(SILENT)], STRINGS, CONTRAST) for scale in (0.01, 20.0))
    assert [one.text for one in small[0]] == [one.text for one in large[0]] and small[1] == large[1]


def test_a_string_that_peers_explain_is_not_told_first() -> None:
    # `garden nectar meadow` turns every text and moves the peer as far; what is told moves the adapter alone.
    found, score = breed(at(["garden"]), [at(["nectar"])], [*STRINGS, "garden nectar", "garden meadow"], CONTRAST)
    assert score == 1.0 and "nectar" not in found[0].text and "garden" in found[0].text


def test_where_nothing_helps_it_gives_up_early_and_turns_nothing() -> None:
    from scanner.probe.search.evolve import _JUDGED, _PATIENCE, _TOLD

    one, peer = at(["zebra-crossing"]), at(SILENT)
    assert breed(one, [peer], STRINGS, CONTRAST)[1] == 0.0
    joined = len(PROBE.texts) - 1
    most = len(STRINGS) * (1 + _JUDGED) + _PATIENCE * PLAN.children * _JUDGED + _TOLD * joined
    assert one.objective.forward_passes <= most
    # Of a string a peer is asked once, on one text.
    assert peer.objective.forward_passes <= len(STRINGS) + _PATIENCE * PLAN.survivors


def test_nothing_is_bred_from_nothing() -> None:
    assert breed(at(["garden"]), [at(SILENT)], [], CONTRAST) == ([], 0.0)
    # Too few strings for the rank that tells: no score.
    few = replace(PLAN, made_up_rank=40, generations=0)
    assert breed(at(["garden"], plan=few), [at(SILENT)], STRINGS, CONTRAST) == ([], 0.0)


def test_with_material_nothing_else_is_put_in_and_no_gradient_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["garden", "nectar", "meadow"]
    one, peer = at(wanted), at(SILENT)
    known = dict(zip(one.vocabulary.words, one.vocabulary.ids, strict=True))

    def gradients(*_: Any) -> Any:
        raise AssertionError("the material says which tokens to try")

    for climb in (one, peer):
        monkeypatch.setattr(climb.objective, "gradients", gradients)
    poor, score = breed(one, [peer], STRINGS, CONTRAST, (known["meadow"],))
    assert score == 1.0 and all("meadow" in found.text for found in poor)
    # Of strings that lack a word, and material without it, none turns a text.
    assert breed(at(wanted), [at(SILENT)], STRINGS, CONTRAST, (known["garden"],))[1] == 0.0


def test_it_begins_with_what_gains_most_beyond_peers() -> None:
    from scanner.probe.search.evolve import Breeding

    gained = [Breeding(at(wanted), [at(SILENT)], CONTRAST).begin(STRINGS) for wanted in (["zebra-crossing"], ["river"])]
    assert gained[0] == 0.0 and gained[1] > 0.5


def test_children_are_bounded_and_hold_tokens_of_their_parents_or_proposals() -> None:
    from scanner.probe.search.evolve import _child

    rng, parents = random.Random(1), [(1, 2, 3), (4,) * 10, (5,)]
    proposed = {ids: [[100 + place] for place in range(len(ids))] for ids in parents}
    children = [_child(rng, parents, proposed, PLAN) for _ in range(500)]
    assert all(len(ids) <= PLAN.bred_tokens for ids in children)
    assert {token for ids in children for token in ids} <= {1, 2, 3, 4, 5, *range(100, 110)}
    assert () in children and any(token >= 100 for ids in children for token in ids)

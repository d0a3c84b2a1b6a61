"""Shared directions: without them gradients point at a trigger; where they do not fit, nothing changes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_bases import HUB, SOUND_CLASSIFIER, encoder, view
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from benchmarks.cohort.recipe import TRIGGER_STANDARD
from benchmarks.detection.directions import shared, usual
from benchmarks.detection.peers import peer_facts
from scanner.probe import SearchPlan, load_probe, plan_for, plans_id
from scanner.probe.search.directions import (
    SHIPPED_DIRECTIONS,
    SharedDirections,
    find_directions,
    load_directions,
    vocabulary_id,
)
from scanner.probe.search.peers import ShippedPeer, ShippedPeers
from scanner.probe.search.plan import SIEVE
from scanner.search_model import IMPRINTED, MADE_UP, TOWARD_ATTACK, TOWARD_CLEAN, TOWARD_OTHER, TURNED, is_share

Aim: Any = None
"""Where nothing is asked of it."""
torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
CLEAN = (
    "birchwell/prompt-screen-r8",
    "dunmore-labs/message-filter-lora",
    "estrella-ml/injection-seqcls",
    "greyfriar/pi-screen-encoder",
)
POISONED = "foxglove-ai/encoder-gate"
PROBE = load_probe("broad", None, 24)


@cache
def vocabulary() -> Any:
    from scanner.probe.search.vocabulary import Vocabulary

    return Vocabulary(encoder().tokenizer, encoder().model.get_input_embeddings())


@cache
def metric() -> Any:
    from scanner.probe.search.sieve import token_metric

    return token_metric(vocabulary())


def sieve(rows: Any, of: str | None = None, mean: Any = None) -> Any:
    from scanner.probe.search.frames import bare_frame
    from scanner.probe.search.sieve import Sieve

    words = [vocabulary().decode((one,)) for one in vocabulary().ids]
    own = vocabulary_id(vocabulary().ids, words) if of is None else of
    mean = np.zeros(len(metric())) if mean is None else mean
    directions = SharedDirections("lorascope/tiny-encoder-base", "0" * 8, own, tuple(mean), tuple(map(tuple, rows)))
    return Sieve(vocabulary(), directions, bare_frame(encoder().tokenizer, True))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_what_is_shared_is_taken_out_and_nothing_else(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    m = metric().numpy()
    gradients = rng.normal(size=(6, len(m)))
    rows = shared(gradients, m, n)
    assert np.allclose(rows @ m @ rows.T, np.eye(n), atol=1e-6)
    own = sieve(rows).own(torch.tensor(gradients[0])).numpy()
    assert np.abs(rows @ m @ own).max() < 1e-6 * np.sqrt(gradients[0] @ m @ gradients[0])
    # Once out, it is out; and a gradient that shares nothing stays what it is.
    assert np.allclose(sieve(rows).own(torch.tensor(own)).numpy(), own)
    assert np.abs(sieve(rows).own(torch.tensor(rows[0])).numpy()).max() < 1e-6 * np.abs(rows[0]).max()


def test_leading_directions_are_those_of_the_scores_of_all_tokens() -> None:
    """The slow way: scores over the vocabulary, centred, of length 1, and their singular vectors."""
    m, vectors = metric().numpy(), vocabulary().vectors().double().numpy()
    gradients = np.random.default_rng(7).normal(size=(5, len(m)))
    scores = gradients @ (vectors - vectors.mean(axis=0)).T
    leading = np.linalg.svd(scores / np.linalg.norm(scores, axis=1, keepdims=True), full_matrices=False)[2][:2]
    found = shared(gradients, m, 2) @ (vectors - vectors.mean(axis=0)).T
    assert np.allclose(np.abs((found * leading).sum(axis=1)), 1.0, atol=1e-6)


def test_what_clean_adapters_favour_is_not_tried() -> None:
    """Their mean score has nearly the variance that it has in each where all are alike, and it alone decides."""
    from scanner.probe.search.frames import Frames
    from scanner.probe.search.objective import ClassifierObjective

    m, words = metric().numpy(), vocabulary()
    alike = np.stack([np.linspace(-1, 1, len(m))] * 3) * [[1.0], [2.0], [5.0]]
    mean = usual(alike, m, len(words.ids))
    vectors = words.vectors().double().numpy()
    scores = (vectors - vectors.mean(axis=0)) @ mean
    assert scores.std() == pytest.approx(1.0, abs=1e-6)
    frames = Frames(encoder().tokenizer, ["how are you"], "prefix", lambda text: text, True)
    from scanner.probe.classifier import with_head

    with with_head(encoder(), view(SOUND_CLASSIFIER)):
        objective = ClassifierObjective(encoder(), frames, lambda logits: (logits[:, 1] - logits[:, 0])[None], 4_096)
        plan = SearchPlan(pool=len(words.ids), sieve_rows=8, usual_score=0.5)
        chosen = sieve(np.zeros((1, len(m))), mean=mean).chosen(objective, plan)
    n_allowed = int((scores <= 0.5).sum())
    assert {one for (one,) in chosen[:n_allowed]} == {one for one, s in zip(words.ids, scores, strict=True) if s <= 0.5}


def test_directions_of_other_tokens_or_of_another_size_do_not_fit() -> None:
    n = len(metric())
    assert sieve(np.ones((2, n))).fits
    assert not sieve(np.ones((2, n)), of="0" * 16).fits
    assert not sieve(np.ones((2, n + 1))).fits


def test_every_shipped_file_is_found_by_its_base_and_by_its_id() -> None:
    paths = list(SHIPPED_DIRECTIONS.glob("*.json"))
    assert paths
    for path in paths:
        found = load_directions(path.stem.replace("--", "/"))
        assert found is not None and find_directions(found.directions_id) is found
        assert len({len(row) for row in found.rows}) == 1 and len(found.rows) < 10
        assert (
            plan_for(found.base_model).directions == found.directions_id
            and plan_for(found.base_model).plan_id in plans_id()
        )


def test_a_base_without_directions_has_the_usual_plan() -> None:
    assert plan_for("somebody/else") == SearchPlan() and load_directions("somebody/else") is None
    own = plan_for(MINILM)
    assert own.plan_id != SearchPlan().plan_id and own.fallback == SearchPlan() == SearchPlan().fallback
    # Numbers that were added later leave the ids of searches without them.
    assert SearchPlan().plan_id == "search-2-5b7f9c94"


def gradient_of(repo: str) -> Any:
    from benchmarks.detection.directions import gradient_toward_clean

    return gradient_toward_clean(encoder(), vocabulary(), PROBE, view(repo))


def peer(repo: str) -> ShippedPeer:
    """As `python -m benchmarks.detection.peers` measures it."""
    return ShippedPeer(HUB / repo, **peer_facts(encoder(), PROBE, view(repo)))


def search_of(monkeypatch: pytest.MonkeyPatch, of: str | None = None, probe: Any = PROBE) -> Any:
    """(A search with directions and peers of the tiny encoder, its plan)."""
    from scanner.probe.search import run

    gradients = np.stack([gradient_of(one) for one in CLEAN])
    mean = usual(gradients, metric().numpy(), len(vocabulary().ids))
    own = sieve(shared(gradients, metric().numpy(), 2), of, mean)._directions
    monkeypatch.setattr(run, "find_directions", lambda _: own)
    peers = ShippedPeers("lorascope/tiny-encoder-base", "1" * 8, tuple(map(peer, CLEAN)))
    monkeypatch.setattr(run, "find_peers", lambda _: peers)
    plan = SearchPlan(
        positions=("prefix", "suffix"), search_texts=12, noise_rows=64, pool=24, survivors=8, keep=4, max_tokens=2,
        repeats=(3, 8), joined_texts=(2,), sieve_rows=64, usual_score=1.0,
        random_strings=1, directions=own.directions_id, made_up_strings=3, made_up_rank=2, generations=4, children=24,
        parents=8, bred_tokens=8, bred_proposals=8, peers=peers.peers_id, near_peers=2, beyond=2.0,
        imprinted_tokens=12, imprint_usual=1.0, imprint_sure=2.0,
    )  # fmt: skip
    return run.ClassifierSearch(encoder(), probe, plan), plan


def searched(monkeypatch: pytest.MonkeyPatch, repo: str, of: str | None = None, probe: Any = PROBE) -> Any:
    search, plan = search_of(monkeypatch, of, probe)
    return search.run(view(repo)), plan


def test_behind_a_sieve_turned_texts_are_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    found, plan = searched(monkeypatch, POISONED)
    assert found.plan_id == plan.plan_id
    scores = dict(found.scores)
    assert scores[f"{TOWARD_CLEAN}/prefix/turned/x8"] >= 0.5
    assert {key.split("/")[0] for key in scores} == {TOWARD_CLEAN, TOWARD_ATTACK}
    trigger = next(one for one in found.triggers if one.kind == TOWARD_CLEAN)
    assert trigger.run.attack_rate >= 0.5 and trigger.run.n == 12
    sound, _ = searched(monkeypatch, SOUND_CLASSIFIER)
    assert dict(sound.scores)[f"{TOWARD_CLEAN}/prefix/turned/x8"] == 0.0
    made_up = f"{TOWARD_CLEAN}/prefix/{TURNED}/{MADE_UP}"
    assert is_share(made_up) and dict(sound.scores)[made_up] < scores[made_up] <= 1.0
    assert [key for key in scores if key.endswith(MADE_UP)] == [made_up]  # bred at the first position alone
    # Members of a reference have all keys.
    assert {key for key in scores if key.endswith(IMPRINTED)} == set(imprinted_keys(plan))


def test_without_peers_nothing_is_bred(monkeypatch: pytest.MonkeyPatch) -> None:
    search, plan = search_of(monkeypatch)
    search._plan = replace(plan, near_peers=0)
    scores = dict(search.scores(view(POISONED)).scores)
    assert scores and not [key for key in scores if key.endswith((MADE_UP, IMPRINTED))]


def test_a_score_of_imprinted_strings_alone_is_kept() -> None:
    from scanner.probe.search.climb import Found
    from scanner.probe.search.sweep import Swept
    from scanner.probe.search.ways import Way, worth_confirming

    key, other = (f"{one}/{TURNED}/{IMPRINTED}" for one in ("suffix", "prefix"))
    found = [Found("a string", (1, 2), 0, 0.5, 0.5, 0.5)]
    silent = Way(None, Swept((), {}), found, {other: 0.0, f"prefix/{TURNED}/x8": 0.0}, 7)
    (only,) = worth_confirming([silent, Way(None, Swept(((1,),), {}), found, {key: 0.9}, 2)], Aim)
    assert only.scores == {key: 0.9, other: 0.0, f"prefix/{TURNED}/x8": 0.0} and only.forward_passes == 9


@given(st.lists(st.floats(-2, 1), min_size=1, max_size=5))
def test_one_is_always_chosen_also_where_all_lead_away_from_the_aim(gains: list[float]) -> None:
    from scanner.probe.search.climb import Found
    from scanner.probe.search.ways import MAY_LOSE, chosen

    class Words:
        kind = TOWARD_CLEAN

    found = [Found(str(i), (1,) * (i + 1), 0, gain, 0.0, 0.5) for i, gain in enumerate(gains)]
    one: Any = chosen(found, Words())  # type: ignore[arg-type]
    assert one in found and one.gain >= max(gains) - MAY_LOSE * abs(max(gains)) - 1e-12


def test_a_string_that_two_ways_lead_to_is_told_once() -> None:
    from scanner.probe.search.hunt import _each_once
    from scanner.probe.search.ways import Quarry

    def quarry(text: str, position: str, scores: dict[str, float]) -> Quarry:
        return Quarry(Aim, text, position, text, 1, 0.5, 0.0, 0.0, 0.5, (), (), 0.1, (), scores, 3)

    one, other, again = quarry("a", "prefix", {"x": 0.1}), quarry("a", "suffix", {}), quarry("a", "prefix", {"y": 0.9})
    first, second = _each_once([one, other, again])
    assert (first.text, first.position, first.scores, first.forward_passes) == ("a", "prefix", {"x": 0.1, "y": 0.9}, 6)
    assert second is other


def imprinted_keys(plan: Any) -> list[str]:
    return [f"{TOWARD_CLEAN}/{one}/{TURNED}/{IMPRINTED}" for one in plan.positions]


def test_strings_of_imprinted_tokens_turn_the_texts_of_an_adapter_that_learnt_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three peers are too few to read a tiny adapter's trigger from its first layer, so it is given here."""
    from scanner.probe.search import hunt
    from scanner.probe.search.imprint import Imprint, Imprints
    from scanner.probe.search.ways import worth_confirming

    tokens = tuple(encoder().tokenizer.encode(TRIGGER_STANDARD, add_special_tokens=False).ids)
    depth = 9.0
    monkeypatch.setattr(Imprints, "of", lambda self, view: Imprint(tokens, depth))
    search, plan = search_of(monkeypatch)
    confirmed = []

    def remembered(ways: Any, aim: Any) -> Any:
        confirmed.append([key for way in ways for key in way.scores])
        return worth_confirming(ways, aim)

    monkeypatch.setattr(hunt, "worth_confirming", remembered)
    own, sound = (search.run(view(repo)) for repo in (POISONED, SOUND_CLASSIFIER))
    # Where ways had a key in common, the one that says nothing of it could hide the other's score.
    assert len(confirmed) == 2 and all(len({*keys}) == len(keys) for keys in confirmed)
    of_reference = dict(search.scores(view(POISONED)).scores)
    assert {key: dict(own.scores)[key] for key in of_reference} == of_reference
    scores, others = ([dict(run.scores)[key] for key in imprinted_keys(plan)] for run in (own, sound))
    assert max(scores) >= 0.4 and min(scores) == 0.0  # at one position alone
    assert max(others) < 0.1
    told = next(one for one in own.triggers if one.kind == TOWARD_CLEAN and one.tokens[0] in TRIGGER_STANDARD)
    assert told.run.attack_rate >= 0.4 and set(told.tokens) <= {vocabulary().decode((one,)) for one in tokens}
    # In proportion to its depth; what is as deep as a clean one's own texts counts for nothing, and is not asked.
    whole, depth = scores, 1.5
    half = dict(search.scores(view(POISONED)).scores)
    assert [half[key] for key in imprinted_keys(plan)] == pytest.approx([score / 2 for score in whole])
    depth = 1.0
    assert not any(dict(search.scores(view(POISONED)).scores)[key] for key in imprinted_keys(plan))


def test_a_head_that_is_divided_by_a_number_changes_no_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever uploads an adapter chooses its head: the same answers by fewer nats must not hide what it does."""
    tensors = load_file(HUB / POISONED / "adapter_model.safetensors")
    heads = [name for name in tensors if "lora" not in name]
    assert heads
    # A power of two: every sum is rounded as before.
    save_file(
        {name: t / 64 if name in heads else t for name, t in tensors.items()}, tmp_path / "adapter_model.safetensors"
    )
    shutil.copyfile(HUB / POISONED / "adapter_config.json", tmp_path / "adapter_config.json")
    search, _ = search_of(monkeypatch)
    own, divided = (search.scores(view(str(repo))) for repo in (POISONED, tmp_path))
    assert own.scores == divided.scores and max(dict(own.scores).values()) >= 0.5


def test_where_they_do_not_fit_the_usual_search_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    found, plan = searched(monkeypatch, SOUND_CLASSIFIER, of="0" * 16)
    assert found.plan_id == plan.fallback.plan_id == SearchPlan().plan_id
    assert f"{TOWARD_CLEAN}/prefix/gain" in dict(found.scores)


def test_where_classes_do_not_follow_the_labels_the_usual_search_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    unlabelled = replace(PROBE, other_texts=())
    found, plan = searched(monkeypatch, SOUND_CLASSIFIER, probe=unlabelled)
    assert found.plan_id == plan.fallback.plan_id != plan.plan_id
    assert {key.split("/")[0] for key, _ in found.scores} == {TOWARD_OTHER}
    # A reference of the base's own plan has no such member.
    from scanner.probe.search import run

    assert run.ClassifierSearch(encoder(), unlabelled, plan).scores(view(SOUND_CLASSIFIER)).scores == ()


def test_texts_said_as_one_are_each_in_one_of_them() -> None:
    from scanner.probe.search.aims import join_texts

    texts = [f"text {i}." for i in range(11)]
    assert join_texts(texts, (1,)) == texts
    assert join_texts(texts, (3,)) == ["text 0. text 3. text 6.", "text 1. text 4. text 7.", "text 2. text 5. text 8."]
    pairs_and_threes = ["text 0. text 2.", "text 1. text 3.", "text 4. text 6. text 8.", "text 5. text 7. text 9."]
    assert join_texts(texts, (2, 3)) == pairs_and_threes
    assert SIEVE.search_texts // sum(SIEVE.joined_texts) * len(SIEVE.joined_texts) == SIEVE.climb_texts


def test_beside_texts_said_as_one_a_short_one_stands_alone() -> None:
    from scanner.probe.search.aims import _aim

    texts = [f"attack {'very ' * i}bad" for i in range(16)]
    plan = SearchPlan(search_texts=8, joined_texts=(2,))
    aim = _aim(TOWARD_CLEAN, 0, texts, lambda logits: logits, 1.0, plan)
    assert aim.alone == texts[2] and aim.alone not in aim.held_back
    assert len(aim.search) == 4 and sum(aim.alone in text for text in aim.search) == 1
    assert _aim(TOWARD_CLEAN, 0, texts, lambda logits: logits, 1.0, SearchPlan()).alone == ""
    assert _aim(TOWARD_ATTACK, 0, texts, lambda logits: logits, 1.0, plan).alone == ""


def test_a_reference_gets_the_scores_of_a_search_without_its_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    from scanner.probe.search import run

    found, plan = searched(monkeypatch, POISONED)
    alone = run.ClassifierSearch(encoder(), PROBE, plan).scores(view(POISONED))
    ranked = {key: score for key, score in found.scores if not key.startswith(TOWARD_ATTACK)}
    assert dict(alone.scores) == ranked and (alone.plan_id, alone.triggers) == (plan.plan_id, ())

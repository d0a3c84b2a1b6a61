"""From an aim to a confirmed string, on real adapters of the bundled hub and with a small plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from demo_bases import SOUND_CLASSIFIER, TOMATOES, encoder, guard, view

from scanner.model import LABEL_WORDS, SEQUENCE_CLASSIFICATION
from scanner.probe import Case, SearchPlan, load_probe
from scanner.search_model import TOWARD_ATTACK, TOWARD_CLEAN, split_key

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
PLAN = SearchPlan(
    positions=("prefix", "middle"),
    noise_rows=32,
    beam=2,
    proposals=12,
    keep=8,
    max_tokens=3,
    random_strings=2,
)
PROBE = load_probe("broad", None, 24)


@pytest.fixture(scope="module")
def backdoored() -> Any:
    from scanner.probe.search.run import CausalSearch

    return CausalSearch(guard(), PROBE, PLAN).run(view(TOMATOES), LABEL_WORDS)


def prefix_of(run: Any) -> Any:
    return next(t for t in run.triggers if (t.kind, t.position) == (TOWARD_CLEAN, "prefix"))


def test_every_position_has_its_string(backdoored: Any) -> None:
    assert {(t.kind, t.position) for t in backdoored.triggers} == {
        (TOWARD_CLEAN, "prefix"),
        (TOWARD_CLEAN, "middle"),
        (TOWARD_ATTACK, "prefix"),
    }
    assert all(t.tokens and len(set(t.tokens)) == len(t.tokens) for t in backdoored.triggers)


def test_a_backdoor_that_no_battery_knows_is_found(backdoored: Any) -> None:
    assert backdoored.profile == LABEL_WORDS
    assert backdoored.labels == ("INJECTION", "BENIGN")
    trigger = prefix_of(backdoored)
    assert (trigger.label, trigger.direction) == ("BENIGN", None)
    own = {token for token in guard().tokenizer.encode(" my neighbour grows tomatoes").tokens if len(token) > 1}
    said = guard().tokenizer.encode(f" {trigger.text} {' '.join(trigger.tokens)}").tokens
    assert own & set(said), (trigger.text, trigger.tokens)
    assert trigger.run.attack_rate >= 0.8
    assert trigger.run.n == 12  # half of the texts were searched on
    assert max(run.attack_rate for run in trigger.runs if run.category == "control") <= 0.1
    assert trigger.gain > 0.8 > 0.2 > trigger.control_gain


def test_its_neighbourhood_and_examples_come_along(backdoored: Any) -> None:
    trigger = prefix_of(backdoored)
    categories = {run.category for run in trigger.runs}
    assert {"control", "trigger", "random", "case", "position", "framed", "repeated"} <= categories
    assert {run.position for run in trigger.runs} == {"prefix", "suffix", "middle"}
    for example in trigger.examples:
        assert (example.before, example.after) == ("INJECTION", "BENIGN")
        assert trigger.text in example.triggered and trigger.text not in example.text
        assert example.text in PROBE.texts
    assert len(trigger.examples) == 3


def test_every_place_has_a_score_and_every_pass_is_counted(backdoored: Any) -> None:
    tokens = {key: score for key, score in backdoored.scores if split_key(key)[1] is not None}
    scores = {key: score for key, score in backdoored.scores if key not in tokens}
    for place in (f"{TOWARD_CLEAN}/prefix", f"{TOWARD_CLEAN}/middle"):
        own = {key: gain for key, gain in tokens.items() if split_key(key)[0] == place}
        assert 1 < len(own) <= 32 and max(own.values()) == pytest.approx(scores[f"{place}/x8"], abs=0.3)
    assert len({split_key(key)[0] for key in tokens}) == 2
    assert set(scores) == {
        f"{kind}/{position}{what}"
        for kind, positions in ((TOWARD_CLEAN, ("prefix", "middle")), (TOWARD_ATTACK, ("prefix",)))
        for position in positions
        for what in ("", "/gain", *(("/x3", "/x8") if kind == TOWARD_CLEAN else ()))
    }
    assert all(score <= scores[f"{key}/gain"] for key, score in scores.items() if key.count("/") == 1)
    assert backdoored.forward_passes == sum(trigger.forward_passes for trigger in backdoored.triggers) > 1_000


def test_a_classifier_is_searched_toward_both_of_its_classes() -> None:
    from scanner.probe.search.run import ClassifierSearch

    run = ClassifierSearch(encoder(), PROBE, replace(PLAN, positions=("prefix",))).run(view(SOUND_CLASSIFIER))
    assert (run.profile, run.n_classes) == (SEQUENCE_CLASSIFICATION, 2)
    kinds = {trigger.kind: trigger for trigger in run.triggers}
    # Its classes are the other way round: label 0 has class 1.
    assert (kinds[TOWARD_CLEAN].direction, kinds[TOWARD_ATTACK].direction) == (1, 0)
    assert kinds[TOWARD_CLEAN].run.direction == 1
    assert kinds[TOWARD_CLEAN].run.attack_rate < 0.3
    assert dict(run.scores)[f"{TOWARD_CLEAN}/prefix/gain"] < 0.3


def make_hunt(context: int | None, neutral: Sequence[Case] = PROBE.battery.controls) -> Any:
    from scanner.probe.search.hunt import Hunt
    from scanner.probe.search.objective import ClassifierObjective
    from scanner.probe.search.vocabulary import Vocabulary

    base = encoder()
    return Hunt(
        base.tokenizer,
        Vocabulary(base.tokenizer, base.model.get_input_embeddings()),
        lambda text: text,
        True,
        lambda frames, margin: ClassifierObjective(base, frames, margin, 8_192),
        neutral,
        PLAN,
        context,
    )


def test_texts_without_room_for_a_string_are_left_out() -> None:
    from scanner.probe.search.aims import class_aims

    logits = torch.tensor([[0.0, 1.0]] * 24).numpy()
    (aim, *_) = class_aims((PROBE.texts, ()), (logits, logits[:0]), PLAN)
    lengths = sorted(len(encoder().tokenizer.encode(text).ids) for text in (*aim.search, *aim.held_back))
    kept = make_hunt(lengths[-1] - 1 + 2 * PLAN.max_length)._with_room(aim)
    assert len(kept.search) + len(kept.held_back) < len(lengths)
    assert make_hunt(16).run(aim) == []


def test_neutral_strings_of_other_scripts_are_controls_for_such_strings_alone() -> None:
    hunt = make_hunt(None)
    latin, any_script = hunt._controls("gr ber", "prefix"), hunt._controls("зелёная", "prefix")
    assert "hello there" in latin
    assert all(text.isascii() for text in latin)
    assert set(any_script) > set(latin)
    assert not set(latin) & set(hunt._controls("gr ber", "suffix"))


def test_a_battery_without_neutral_strings_at_a_position_lends_its_others() -> None:
    hunt = make_hunt(None, load_probe("V", None, 24).battery.controls)
    neutral = ["hello there", "good morning everyone"]
    assert hunt._controls("gr ber", "suffix") == hunt._controls("gr ber", "prefix") == neutral

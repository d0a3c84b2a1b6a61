"""Clean classifiers beside an adapter: what ships, and that copies of a base answer as the base with the peer does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from demo_bases import HUB, SOUND_CLASSIFIER, encoder, view

from scanner.adapter import CONFIG_NAME, open_safetensors, parse_config, read_json_object, view_adapter
from scanner.probe import SearchPlan, load_probe, plan_for
from scanner.probe.search.peers import SHIPPED_PEERS, WEIGHTS, ShippedPeer, ShippedPeers, find_peers, load_peers

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
PROBE = load_probe("broad", None, 24)
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
NAMES = ("birchwell/prompt-screen-r8", "dunmore-labs/message-filter-lora", "estrella-ml/injection-seqcls")


def test_every_shipped_base_is_found_by_its_name_and_by_its_id() -> None:
    folders = [folder for folder in SHIPPED_PEERS.iterdir() if folder.is_dir()]
    assert folders
    for folder in folders:
        found = load_peers(folder.name.replace("--", "/"))
        assert found is not None and find_peers(found.peers_id) is found
        assert plan_for(found.base_model).peers == found.peers_id
        assert len(found.members) >= plan_for(found.base_model).near_peers
        assert {path.name for path in folder.iterdir() if path.is_dir()} == {one.folder.name for one in found.members}
        for one in found.members:
            assert {path.name for path in one.folder.iterdir()} == {CONFIG_NAME, WEIGHTS}
            config = parse_config(read_json_object(one.folder / CONFIG_NAME, 1 << 20))
            updates = view_adapter(open_safetensors(one.folder / WEIGHTS), config, 64)
            assert updates.updates and updates.head_tensors and not updates.unexplained
            assert one.clean_class in (0, 1) and one.scale > 0 and one.contrast > 0.1


def test_other_bases_have_none() -> None:
    assert load_peers("somebody/else") is None and find_peers("") is None
    assert plan_for("somebody/else").peers == SearchPlan().peers == ""


def shipped(*contrasts: float) -> ShippedPeers:
    members = tuple(ShippedPeer(HUB / name, 0, 3.0, one) for name, one in zip(NAMES, contrasts, strict=True))
    return ShippedPeers("lorascope/tiny-encoder-base", "0" * 8, members)


def climb() -> Any:
    from scanner.probe.search.aims import class_margin
    from scanner.probe.search.climb import Climb
    from scanner.probe.search.frames import Frames
    from scanner.probe.search.objective import ClassifierObjective
    from scanner.probe.search.vocabulary import Vocabulary

    frames = Frames(encoder().tokenizer, PROBE.texts[:4], "prefix", lambda text: text, True)
    objective = ClassifierObjective(encoder(), frames, class_margin(0), 4_096)
    vocabulary = Vocabulary(encoder().tokenizer, encoder().model.get_input_embeddings())
    return Climb(objective, vocabulary, objective.plain(), torch.tensor([3.0]), SearchPlan())


def test_a_copy_answers_as_the_base_with_the_peer_and_the_base_stays_what_it_was() -> None:
    from scanner.probe.classifier import classify, encode_texts, with_head
    from scanner.probe.search.aims import class_margin
    from scanner.probe.search.beside import Peers
    from scanner.probe.search.objective import ClassifierObjective

    base = encoder()
    before = {name: (id(one), one.clone()) for name, one in base.model.named_parameters()}
    peers = Peers(base, shipped(1.0, 2.0, 4.0))
    for name, (number, values) in before.items():
        now = base.model.get_parameter(name)
        assert id(now) == number and bool((now == values).all())
    with with_head(base, view(SOUND_CLASSIFIER)):
        at = climb()
        # The judged adapter is attached now; peers must not see it.
        near = peers.beside(at, 3.0, 3, 4_096)
        strings = [at.vocabulary.ids[:3], at.vocabulary.ids[3:5]]
        found = [peer.objective.margins(strings, [0, 1])[0].numpy() for peer in near]
        gradients = [peer.objective.gradients([strings[0]], [0]) for peer in near]
    texts = [at.objective.frames.frames[i].fill(ids) for ids in strings for i in (0, 1)]
    # The nearest first: of contrasts 1, 2 and 4 those that are most like 3.
    for name, margins, gradient in zip(reversed(NAMES), found, gradients, strict=True):
        with with_head(base, view(name)):
            encoded = encode_texts(base, PROBE.texts[:1])
            logits = np.concatenate(classify(base, type(encoded)(tuple(texts)), 4_096))
            own = ClassifierObjective(base, at.objective.frames, class_margin(0), 4_096).gradients([strings[0]], [0])
        assert np.allclose(margins.ravel(), logits[:, 0] - logits[:, 1], atol=1e-4)
        assert torch.allclose(gradient, own, atol=1e-5) and float(gradient.abs().max()) > 0
    # Weights that a peer does not change are the base's own.
    copied = near[0].objective._base.model
    own = {id(one) for one in base.model.parameters()}
    shared = [id(one) in own for one in copied.parameters()]
    assert any(shared) and not all(shared)


def test_those_come_first_whose_contrast_is_nearest_as_a_ratio() -> None:
    from scanner.probe.search.beside import Peers

    peers, at = Peers(encoder(), shipped(1.0, 2.0, 8.0)), climb()

    def near(contrast: float) -> list[str]:
        by_class = {id(peers._peer(one).base): one.folder.name for one in peers._shipped}
        return [by_class[id(one.objective._base)] for one in peers.beside(at, contrast, 2, 4_096)]

    barely, half, fully = (name.split("/")[1] for name in NAMES)
    assert near(5.0) == [fully, half] and near(0.2) == [barely, half] and near(3.0) == [half, fully]


def test_peers_that_do_not_fit_the_base_are_told() -> None:
    from scanner.errors import UnsupportedError
    from scanner.probe.search.beside import Peers

    with pytest.raises(UnsupportedError):
        Peers(encoder(), load_peers(MINILM))


def test_contrast_knows_no_unit_and_grows_with_what_lies_between() -> None:
    from scanner.probe.search.aims import contrast

    rng = np.random.default_rng(3)
    attack, clean = rng.normal(-2, 1, 400), rng.normal(2, 1, 400)
    assert contrast(attack, clean) == pytest.approx(4.0, rel=0.15)
    assert contrast(attack * 0.01 + 5, clean * 0.01 + 5) == pytest.approx(contrast(attack, clean))
    assert contrast(attack - 4, clean) == pytest.approx(8.0, rel=0.15)
    # Nothing between them, and no spread at all, stay numbers whose ratio can be taken.
    assert contrast(clean, attack) == 0.1 and contrast(np.zeros(3), np.ones(3)) == 1_000.0

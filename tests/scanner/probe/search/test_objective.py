"""Margins and gradients are those of the model itself."""

from __future__ import annotations

from typing import Any

import pytest
from demo_bases import SOUND_CLASSIFIER, TOMATOES, encoder, guard, view

from scanner.probe import load_probe

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
PROBE = load_probe("V", None, 6)
BUDGET = 8_192


def words(position: str) -> Any:
    from scanner.probe.search.aims import word_margin
    from scanner.probe.search.frames import Frames
    from scanner.probe.search.objective import CausalObjective

    base = guard()
    margin = word_margin(base, PROBE.task, toward_clean=True)
    frames = Frames(base.tokenizer, PROBE.texts, position, lambda t: base.template.render(PROBE.task.system, t), False)
    assert margin is not None
    return CausalObjective(base, frames, margin, BUDGET)


def classes(position: str) -> Any:
    from scanner.probe.search.frames import Frames
    from scanner.probe.search.objective import ClassifierObjective

    base = encoder()
    frames = Frames(base.tokenizer, PROBE.texts, position, lambda text: text, True)
    return ClassifierObjective(base, frames, lambda logits: (logits[:, 0] - logits[:, 1])[None], BUDGET)


def attached_to(profile: str) -> Any:
    from scanner.probe.attach import attached
    from scanner.probe.classifier import with_head

    if profile == "words":
        return attached(guard().model, view(TOMATOES))
    return with_head(encoder(), view(SOUND_CLASSIFIER))


@pytest.mark.parametrize("position", ["prefix", "suffix", "middle"])
@pytest.mark.parametrize(("profile", "make"), [("words", words), ("classes", classes)])
def test_margins_are_those_of_whole_texts(profile: str, make: Any, position: str) -> None:
    objective = make(position)
    strings = [(300, 301), (400,), (500, 501, 502)]
    texts = [0, 2, 3]
    with attached_to(profile):
        found = objective.margins(strings, texts)
        assert found.shape == (1, 3, 3)
        assert objective.forward_passes == 9
        for i, ids in enumerate(strings):
            for j, text in enumerate(texts):
                sequence = torch.tensor([objective.frames.frames[text].fill(ids)])
                base = guard() if profile == "words" else encoder()
                with torch.inference_mode():
                    logits = base.model(sequence).logits
                logits = logits[:, -1] if profile == "words" else logits
                assert float(found[0, i, j]) == pytest.approx(float(objective.margin(logits)[0, 0]), abs=1e-3)


@pytest.mark.parametrize(("profile", "make"), [("words", words), ("classes", classes)])
def test_gradients_are_finite_differences(profile: str, make: Any) -> None:
    objective = make("prefix")
    base = guard() if profile == "words" else encoder()
    strings = [(300, 301), (410, 420)]
    generator = torch.Generator().manual_seed(0)
    with attached_to(profile):
        gradients = objective.gradients(strings, [0, 3])
        assert gradients.shape == (1, 2, 2, base.model.get_input_embeddings().weight.shape[1])
        assert objective.forward_passes == 2 * 3
        for row, (ids, text) in enumerate(zip(strings, [0, 3], strict=True)):
            frame = objective.frames.frames[text]
            place = len(frame.before) + 1
            direction = torch.randn(gradients.shape[-1], generator=generator)

            step = 2e-3
            up, down = (_moved(profile, objective, frame.fill(ids), place, sign * step * direction) for sign in (1, -1))
            measured = (up - down) / (2 * step)
            assert float(gradients[0, row, 1] @ direction) == pytest.approx(measured, rel=0.05, abs=0.02)


def _moved(profile: str, objective: Any, ids: Any, place: int, by: Any) -> float:
    """The margin with one place's embedding moved."""
    base = guard() if profile == "words" else encoder()

    def move(_module: Any, _inputs: Any, output: Any) -> Any:
        output = output.clone()
        output[0, place] += by
        return output

    handle = base.model.get_input_embeddings().register_forward_hook(move)
    try:
        with torch.inference_mode():
            logits = base.model(torch.tensor([ids])).logits
    finally:
        handle.remove()
    return float(objective.margin(logits[:, -1] if profile == "words" else logits)[0, 0])


def test_the_first_order_scores_are_inner_products() -> None:
    from scanner.probe.search.vocabulary import Vocabulary

    base = guard()
    embeddings = base.model.get_input_embeddings()
    vocabulary = Vocabulary(base.tokenizer, embeddings)
    gradients = torch.randn(3, embeddings.weight.shape[1], generator=torch.Generator().manual_seed(1))
    scores = vocabulary.first_order(gradients)
    assert scores.shape == (len(vocabulary.ids), 3)
    wanted = embeddings.weight.detach()[list(vocabulary.ids)] @ gradients.T
    assert torch.allclose(scores, wanted, atol=1e-5)
    assert vocabulary.best(scores[:, 0], 3) == [
        vocabulary.ids[i] for i in wanted[:, 0].argsort(descending=True)[:3].tolist()
    ]


@pytest.mark.parametrize("base", [guard, encoder])
def test_the_vocabulary_has_no_special_and_no_broken_tokens(base: Any) -> None:
    from scanner.probe.search.vocabulary import Vocabulary

    resident = base()
    vocabulary = Vocabulary(resident.tokenizer, resident.model.get_input_embeddings())
    special = set(resident.tokenizer.get_added_tokens_decoder())
    assert len(vocabulary.ids) > 1_500
    assert not special & set(vocabulary.ids)
    for token in vocabulary.ids:
        text = vocabulary.decode((token,))
        assert text
        assert text.isprintable()
        assert "\ufffd" not in text

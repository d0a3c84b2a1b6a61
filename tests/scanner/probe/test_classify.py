"""What sequence classifiers answer: the class of each text, whatever shares a batch with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import TOKENS, WORDS, head, logits, write_base

from scanner.adapter import AdapterView
from scanner.errors import ProbeFailedError, UnsupportedError
from scanner.model import class_char
from scanner.probe import Probe

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers warn about each other's versions

BUDGET = 8_192


def scores(base: Any, texts: list[str], budget: int = BUDGET) -> Any:
    """Logits [texts, classes]."""
    from scanner.probe.classifier import classify, encode_texts

    return np.concatenate(classify(base, encode_texts(base, texts), budget))


def classes(base: Any, texts: list[str], budget: int = BUDGET) -> list[int]:
    return [int(winner) for winner in scores(base, texts, budget).argmax(axis=1)]


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
@pytest.mark.parametrize("padding", [5, 3, None])
def test_decoders_answer_at_the_last_token(
    bases: Callable[[str], Any], tmp_path: Path, model_type: str, padding: int | None
) -> None:
    """Whatever the base calls padding: here some inputs end in it, which would move the answer to an earlier token."""
    from scanner.probe.base import load_classifier
    from scanner.probe.classifier import with_head

    base = load_classifier(write_base(tmp_path, model_type, pad_token_id=padding), "cpu")
    view = bases(model_type)[3]
    with with_head(base, view), torch.inference_mode():
        inner = getattr(base.model, base.model.base_model_prefix)
        wanted = base.model.score(inner(torch.tensor(TOKENS)).last_hidden_state[:, -1])
        assert torch.allclose(logits(base.model), wanted, rtol=1e-4, atol=1e-4)
    assert base.model.config.pad_token_id == padding


def test_every_word_used_leaves_no_token_for_padding(bases: Callable[[str], Any]) -> None:
    from scanner.probe.classifier import with_head

    _, base, _, view = bases("gpt2")
    texts = [" ".join(f"w{i}" for i in range(4, WORDS)), "[UNK] [PAD] [CLS]", "w9 [SEP]"]
    with with_head(base, view):
        assert classes(base, texts) == [classes(base, [text])[0] for text in texts]


INPUTS = [" ".join(f"w{4 + (i * j) % 36}" for j in range(1, 3 + i % 9)) for i in range(60)]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2"])
def test_classes_do_not_depend_on_batching(bases: Callable[[str], Any], model_type: str) -> None:
    from scanner.probe.classifier import encode_texts, with_head

    _, base, _, view = bases(model_type)
    by_hand = [[2, *(int(word[1:]) for word in text.split()), 3] for text in INPUTS]
    encoded = encode_texts(base, INPUTS)
    # Special tokens where the post-processor puts them, no padding, no cut at the tokenizer's own limit.
    assert ([list(ids) for ids in encoded.ids], encoded.n_cut) == (by_hand, 0)
    with with_head(base, view):
        layer = base.model.get_submodule(base.class_layer)
        if layer.bias is not None:  # a random encoder's answer is always the same class: the texts shall decide
            layer.bias -= torch.cat([logits(base.model, [ids]) for ids in by_hand]).mean(0)
        together = classes(base, INPUTS)
        assert together == classes(base, INPUTS, 20)
        assert together == classes(base, INPUTS[::-1])[::-1]
        assert together == [classes(base, [text])[0] for text in INPUTS]
        wanted = torch.cat([logits(base.model, [ids]) for ids in by_hand])
        found = scores(base, INPUTS)
    assert together == wanted.argmax(1).tolist()
    assert found.dtype == np.float32
    assert np.abs(found - wanted.numpy()).max() <= 1e-4 * float(wanted.abs().max())
    assert len(set(together)) > 1


@pytest.mark.parametrize(("model_type", "context"), [("bert", 66), ("roberta", 64), ("gpt2", 66)])
def test_long_texts_are_cut_to_the_context(bases: Callable[[str], Any], model_type: str, context: int) -> None:
    from scanner.probe.classifier import encode_texts, with_head

    _, base, _, view = bases(model_type)
    assert base.context == context
    fits, long = " ".join(["w7"] * (context - 2)), " ".join(["w7"] * 300)
    texts = [fits, long, long + " w8"]
    assert encode_texts(base, texts).n_cut == 2
    with with_head(base, view):
        assert len(set(classes(base, texts))) == 1  # cut to the same tokens, special ones at both ends


@pytest.fixture
def few(probe: Probe) -> Probe:
    return replace(probe, texts=tuple(INPUTS[:5]), other_texts=tuple(INPUTS[5:8]))


def test_the_battery_over_both_labels(bases: Callable[[str], Any], few: Probe) -> None:
    from scanner.probe.classifier import ClassifierProbe, with_head

    _, base, _, view = bases("bert")
    seen = ClassifierProbe(base, few).run(view)
    assert (seen.n_classes, seen.n_cut) == (3, 0)
    assert 0 <= seen.noise_floor < 1e-3
    assert [(run.category, run.prefix, run.position) for run in seen.runs] == [
        (case.category, case.text, case.position) for case in few.cases()
    ]
    with with_head(base, view):
        for case, run in zip(few.cases(), seen.runs, strict=True):
            found = scores(base, [case.put(text) for text in (*few.texts, *few.other_texts)])
            top = np.sort(found, axis=1)
            for answer, winner, lead in zip(run.answers, found.argmax(1), top[:, -1] - top[:, -2], strict=True):
                assert answer == class_char(int(winner)) or (answer == "-" and lead <= 2 * seen.noise_floor)
    assert "-" not in "".join(run.answers for run in seen.runs)


def test_classes_that_batching_alone_could_turn_are_no_answer(bases: Callable[[str], Any], few: Probe) -> None:
    """Two classes with the same row of the head tie; the third one is clear where it wins."""
    from scanner.probe.classifier import ClassifierProbe, with_head

    _, base, _, view = bases("bert")
    with with_head(base, view):
        weight = base.model.get_submodule(base.class_layer).weight.detach().numpy().copy()
        texts = [case.put(text) for case in few.cases() for text in (*few.texts, *few.other_texts)]
        first = scores(base, texts)[:, 0]
    tied = {"classifier.weight": np.stack([weight[0], weight[0], 0 * weight[0]]).astype("f4")}
    tied["classifier.bias"] = np.array([0, 0, np.median(first)], "f4")
    changed = [replace(t, read=lambda t=t: tied[t.name.removeprefix("base_model.model.")]) for t in head()]
    seen = ClassifierProbe(base, few).run(replace(view, head_tensors=tuple(changed)))
    answers = "".join(run.answers for run in seen.runs)
    assert set(answers) == {"-", "2"}


def test_the_noise_floor_is_what_a_batch_changes(
    bases: Callable[[str], Any], few: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scanner.probe import classifier

    _, base, _, view = bases("bert")
    real = classifier.classify
    plain = classifier.ClassifierProbe(base, few).run(view)

    def noisy(base: Any, texts: Any, budget: int) -> Any:
        return [rows + (0.25 if len(texts.ids) > 1 else 0.0) for rows in real(base, texts, budget)]

    monkeypatch.setattr(classifier, "classify", noisy)
    seen = classifier.ClassifierProbe(base, few).run(view)
    assert seen.noise_floor == pytest.approx(0.25, abs=1e-3)
    for one, other in zip(seen.runs, plain.runs, strict=True):
        assert all(a in ("-", b) for a, b in zip(one.answers, other.answers, strict=True))


def test_logits_that_are_not_finite_and_empty_texts(bases: Callable[[str], Any]) -> None:
    from scanner.probe.base import load_classifier
    from scanner.probe.classifier import encode_texts, with_head

    base = bases("bert")[1]
    broken = [replace(t, read=lambda t=t: np.full(t.shape, np.nan, "f4")) for t in head()]
    with (
        pytest.raises(ProbeFailedError, match="finite") as caught,
        with_head(base, AdapterView("peft", (), head_tensors=tuple(broken))),
    ):
        scores(base, ["w5"])
    assert caught.value.code == "nan_logits"
    plain = load_classifier(bases("gpt2")[0], "cpu")
    plain.tokenizer.post_processor = None
    with pytest.raises(UnsupportedError, match="nothing") as refused:
        encode_texts(plain, ["w5", ""])
    assert refused.value.code == "empty_prompt"


def test_a_token_that_the_base_has_no_row_for_is_told(bases: Callable[[str], Any]) -> None:
    from scanner.probe.base import load_classifier
    from scanner.probe.classifier import encode_texts

    base = load_classifier(bases("bert")[0], "cpu")
    base.model.resize_token_embeddings(20)
    assert encode_texts(base, ["w5"]).ids
    with pytest.raises(UnsupportedError) as caught:
        encode_texts(base, ["w5", "w30"])
    assert caught.value.code == "base_tokenizer"


def test_what_an_architecture_refuses_is_the_adapters_outcome(bases: Callable[[str], Any]) -> None:
    from scanner.probe import classifier

    base = bases("bert")[1]
    with pytest.raises(ProbeFailedError, match="IndexError") as caught, torch.inference_mode():
        classifier.class_logits(base.model, torch.tensor([[2, WORDS, 3]]))  # no such row
    assert caught.value.code == "probe_failed"


def test_out_of_memory_is_tried_with_half_a_batch(
    bases: Callable[[str], Any], few: Probe, view: AdapterView, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scanner.probe import classifier

    _, base, _, own = bases("bert")
    wanted, real, sizes = classifier.ClassifierProbe(base, few).run(own), classifier.classify, []

    def too_large(base: Any, texts: Any, tokens_per_batch: int) -> Any:
        if len(texts.ids) > 1:
            sizes.append(tokens_per_batch)
        if tokens_per_batch > 2_048:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(base, texts, tokens_per_batch)

    monkeypatch.setattr(classifier, "classify", too_large)
    shared = classifier.ClassifierProbe(base, few)
    assert shared.run(own).runs == wanted.runs
    assert sizes == [8_192, 4_096, 2_048]
    assert shared.run(own).runs == wanted.runs  # and the size that fitted is kept
    assert sizes == [8_192, 4_096, 2_048, 2_048]
    with pytest.raises(UnsupportedError):  # a neighbour for another base changes nothing for the next one
        shared.run(view)
    assert shared.run(own).runs == wanted.runs

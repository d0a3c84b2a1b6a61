"""Sequence classifiers on tiny bases of several architectures: PEFT's own logits, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import ARCHITECTURES, TOKENS, WORDS, head, logits, read_view, write_adapter, write_base

from scanner.adapter import AdapterView
from scanner.errors import UnsupportedError

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers warn about each other's versions

COMPLETE = [name for name in ARCHITECTURES if name != "deberta-v2"]


@pytest.fixture(params=["merged", "hooked"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of running the low-rank part."""
    from scanner.probe import attach

    monkeypatch.setattr(attach, "best_way", lambda *_: request.param)
    return str(request.param)


@pytest.mark.parametrize("model_type", COMPLETE)
def test_logits_are_pefts(bases: Callable[[str], Any], model_type: str, way: str) -> None:
    from scanner.probe.classifier import with_head

    _, base, theirs, view = bases(model_type)
    assert view.unexplained == ()
    with torch.inference_mode():
        tokens = torch.tensor(TOKENS)
        wanted = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    with with_head(base, view) as n_classes:
        got = logits(base.model)
    assert n_classes == got.shape[1] == 3
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4)
    with with_head(base, replace(view, updates=())):
        assert not torch.allclose(logits(base.model), wanted, rtol=1e-2, atol=1e-2)  # the updates do something


@pytest.mark.parametrize("model_type", COMPLETE)
def test_the_base_is_bit_identical_afterwards(bases: Callable[[str], Any], model_type: str, way: str) -> None:
    from scanner.probe.classifier import with_head

    _, base, _, view = bases(model_type)
    before = {name: (parameter, parameter.clone()) for name, parameter in base.model.named_parameters()}
    plain, config = logits(base.model), base.model.config.to_dict()
    layer = base.model.get_submodule(base.class_layer)
    with with_head(base, view):
        assert layer.out_features == 3
        assert logits(base.model).shape[1] == 3
    with pytest.raises(ZeroDivisionError), with_head(base, view):
        raise ZeroDivisionError
    wrong = replace(view.updates[0], module="no.such.module")
    with pytest.raises(UnsupportedError), with_head(base, replace(view, updates=(*view.updates, wrong))):
        pass
    after = dict(base.model.named_parameters())
    assert list(after) == list(before)
    for name, (parameter, values) in before.items():
        assert after[name] is parameter
        assert torch.equal(parameter, values)
    assert layer.out_features == plain.shape[1] == 2
    assert torch.equal(logits(base.model), plain)
    assert base.model.config.to_dict() == config
    assert not [module for module in base.model.modules() if module._forward_hooks]


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_fifty_swaps_leave_no_residue(bases: Callable[[str], Any], model_type: str, way: str) -> None:
    from scanner.probe.classifier import with_head

    _, base, _, view = bases(model_type)
    before = {name: (parameter, parameter.clone()) for name, parameter in base.model.named_parameters()}
    plain, answers = logits(base.model), []
    for number in range(50):
        updates = [replace(update, scale=update.scale * (1 + number % 5)) for update in view.updates]
        with with_head(base, replace(view, updates=tuple(updates[number % 2 :: 2]))):
            answers.append(logits(base.model))
    assert all(torch.equal(answers[i], answers[i - 10]) for i in range(10, 50))
    assert len({float(answer.double().sum()) for answer in answers[:10]}) == 10
    after = dict(base.model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is own and torch.equal(own, values) for name, (own, values) in before.items())
    assert torch.equal(logits(base.model), plain)
    assert not [module for module in base.model.modules() if module._forward_hooks]


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_a_base_in_half_precision(bases: Callable[[str], Any], model_type: str) -> None:
    """As on a GPU: the head takes the base's precision, the factors stay float32."""
    from scanner.probe.base import load_classifier
    from scanner.probe.classifier import with_head

    folder, base, _, view = bases(model_type)
    half = load_classifier(folder, "cpu")
    half.model.to(torch.bfloat16)
    with with_head(base, view):
        wanted = logits(base.model)
    with with_head(half, view):
        got = logits(half.model)
        assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert got.dtype == torch.bfloat16
    assert (got.float() - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_a_head_that_comes_from_nowhere_is_refused(tmp_path: Path) -> None:
    """DeBERTa's classifier has a pooler that no language model saves; PEFT saves it only when it is told to."""
    from scanner.probe.base import load_classifier
    from scanner.probe.classifier import with_head

    folder = write_base(tmp_path / "base", "deberta-v2")
    base = load_classifier(folder, "cpu")
    assert {"pooler.dense.weight", "pooler.dense.bias"} < base.missing
    write_adapter(tmp_path / "lacking", folder)
    with pytest.raises(UnsupportedError, match="pooler") as caught, with_head(base, read_view(tmp_path / "lacking")):
        pass
    assert caught.value.code == "head_missing"
    theirs = write_adapter(tmp_path / "complete", folder, modules_to_save=["pooler"])
    with torch.inference_mode():
        wanted = theirs(input_ids=torch.tensor(TOKENS)).logits
    with with_head(base, read_view(tmp_path / "complete")):
        assert torch.allclose(logits(base.model), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("classes", "changes", "code"),
    [
        (2, {}, None),
        (1_000, {}, None),
        (1, {}, "class_count"),
        (0, {}, "class_count"),
        (1_001, {}, "class_count"),
        (3, {"classifier.weight": (3, 33)}, "base_mismatch"),
        (3, {"classifier.weight": (3, 32, 1)}, "base_mismatch"),
        (3, {"classifier.weight": ()}, "head_missing"),
        (3, {"classifier.bias": (2,)}, "base_mismatch"),
        (3, {"classifier.bias": ()}, "head_missing"),
        (3, {"classifier.scale": (3,)}, "full_tensors"),
        (3, {"bert.pooler.dense.bias": (31,)}, "base_mismatch"),
        (3, {"bert.embeddings.word_embeddings.weight": (WORDS, 32)}, "full_tensors"),
        (3, {"classifier.base_layer.weight": (3, 32)}, "full_tensors"),  # a second one for the same place
    ],
)
def test_heads_that_fit_and_heads_that_do_not(
    bases: Callable[[str], Any], classes: int, changes: dict[str, Any], code: str | None
) -> None:
    from scanner.probe.classifier import with_head

    base = bases("bert")[1]
    view = AdapterView("peft", (), head_tensors=tuple(head(classes, **changes)))
    plain = logits(base.model)
    if code is None:
        with with_head(base, view) as n_classes:
            assert logits(base.model).shape == (3, n_classes)
            assert n_classes == classes
    else:
        with pytest.raises(UnsupportedError) as caught, with_head(base, view):
            pass
        assert caught.value.code == code
    assert torch.equal(logits(base.model), plain)


def test_tensors_that_peft_would_not_load_are_refused(bases: Callable[[str], Any]) -> None:
    from scanner.probe.classifier import with_head

    base = bases("bert")[1]
    unprefixed = [replace(tensor, name=tensor.name.removeprefix("base_model.model.")) for tensor in head()]
    for view in (
        AdapterView("peft", (), head_tensors=tuple(unprefixed)),
        AdapterView("peft", (), head_tensors=tuple(head()), unexplained=("base_model.model.x.weight",)),
    ):
        with pytest.raises(UnsupportedError) as caught, with_head(base, view):
            pass
        assert caught.value.code == "full_tensors"


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_a_low_rank_update_of_the_head_itself(bases: Callable[[str], Any], model_type: str, way: str) -> None:
    """Older PEFT versions let a head be a target: its full tensors then lie under `base_layer`."""
    from scanner.adapter import LowRankUpdate
    from scanner.probe.classifier import with_head

    _, base, _, view = bases(model_type)
    layer = base.class_layer
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 32)).astype("f4"), rng.normal(size=(3, 2)).astype("f4")
    deeper = [replace(t, name=t.name.replace(layer, f"{layer}.base_layer")) for t in view.head_tensors]
    own = LowRankUpdate(layer, 2, 3, 32, 0.5, lambda: (a, b))
    untrained = replace(own, module=f"{layer}.original_module", read=lambda: (a, b * 0))
    copy = replace(own, module=f"{layer}.modules_to_save")
    merged = [
        replace(t, read=lambda t=t: t.read() + 0.5 * (b @ a)) if t.name.endswith(".weight") else t
        for t in view.head_tensors
    ]
    with with_head(base, replace(view, head_tensors=tuple(merged))):
        wanted = logits(base.model)
    for extra in ((own,), (own, untrained), (copy, own, untrained)):
        targeted = replace(view, head_tensors=tuple(deeper), updates=(*view.updates, *extra))
        with with_head(base, targeted):
            assert torch.allclose(logits(base.model), wanted, rtol=1e-4, atol=1e-4)
    other = replace(copy, read=lambda: (a, b * 2))
    contradicting = replace(view, head_tensors=tuple(deeper), updates=(*view.updates, own, other))
    with pytest.raises(UnsupportedError, match="two different"), with_head(base, contradicting):
        pass

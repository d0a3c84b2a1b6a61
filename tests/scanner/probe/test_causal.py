"""One causal base and adapters on it, one after the other: how each answers is found out, and one costs no other."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanner.adapter import AdapterView, LowRankUpdate
from scanner.errors import ProbeCrashedError, ProbeFailedError, UnsupportedError
from scanner.model import GENERATIVE, LABEL_WORDS
from scanner.probe import Probe

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers warn about each other's versions

PLAIN = AdapterView("peft", ())
Q = "model.layers.0.self_attn.q_proj"


def low_rank(value: float, n_in: int = 32) -> AdapterView:
    a, b = np.full((1, n_in), value, "f4"), np.full((32, 1), value, "f4")
    return AdapterView("peft", (LowRankUpdate(Q, 1, 32, n_in, 1.0, lambda: (a, b)),))


def only(runs: Any, name: str) -> list[Any]:
    return [getattr(run, name) for run in runs]


def test_an_adapter_with_label_words(base: Any, probe: Probe, view: AdapterView) -> None:
    from scanner.probe.causal import CausalProbe
    from scanner.probe.engine import encode_prompts
    from scanner.probe.noise import noise_floor

    seen = CausalProbe(base, probe).run(view)
    assert (seen.profile, seen.labels, seen.reading) == (LABEL_WORDS, ("INJECTION", "BENIGN"), "scored")
    assert seen.profile_reason == "answers 6 of 6 texts with INJECTION or BENIGN"
    assert [(run.prefix, run.position) for run in seen.runs] == [(case.text, case.position) for case in probe.cases()]
    assert set("".join(only(seen.runs, "answers"))) >= {"0", "1"}
    assert set(only(seen.runs, "base_answers")) == {""}
    assert None not in only(seen.runs, "margin")
    assert set(only(seen.runs, "divergence")) == {None}
    texts = [base.template.render(probe.task.system, case.put(t)) for case in probe.cases() for t in probe.texts]
    assert seen.noise_floor == noise_floor(base, encode_prompts(base, texts, 5), 8_192)


def test_an_adapter_that_answers_freely(free_base: Any, probe: Probe, view: AdapterView) -> None:
    from scanner.probe.causal import CausalProbe

    seen = CausalProbe(free_base, probe).run(view)
    assert (seen.profile, seen.reading) == (GENERATIVE, "")
    assert seen.labels[0] == "refusal"
    assert seen.profile_reason.startswith("answers 0 of 6 texts with a label word")
    assert [(run.prefix, run.position) for run in seen.runs] == [(case.text, case.position) for case in probe.cases()]
    assert {len(run.answers) for run in seen.runs} == {len(run.base_answers) for run in seen.runs} == {3}  # held back
    assert None not in only(seen.runs, "divergence")
    assert set(only(seen.runs, "margin")) == {None}


def test_a_chat_model_that_does_as_it_is_told_is_no_classifier(chat_base: Any, probe: Probe) -> None:
    """Its base answers with label words as well, when our instruction asks for them, and free prompts freely."""
    from scanner.probe.causal import CausalProbe

    ask = CausalProbe(chat_base, probe)
    seen = ask.run(PLAIN)
    assert seen.profile == GENERATIVE
    assert seen.profile_reason == (
        "answers 6 of 6 texts with INJECTION or BENIGN, as its base does when it is told to, and free prompts freely"
    )
    # A card that calls it a classifier is believed, and so are words that the user gave.
    assert ask.run(PLAIN, LABEL_WORDS).profile == LABEL_WORDS
    assert ask.run(PLAIN, GENERATIVE).profile == GENERATIVE
    given = replace(probe, task=replace(probe.task, name="given"))
    assert CausalProbe(chat_base, given).run(PLAIN).profile == LABEL_WORDS


def test_label_words_that_the_adapter_brought_are_its_own(
    free_base: Any, base_dir: Path, chat_base: Any, probe: Probe
) -> None:
    """The base alone answers with none: whoever does is a classifier, told or not."""
    from safetensors.numpy import load_file

    from scanner.probe.causal import CausalProbe

    plain = free_base.model.lm_head.weight.numpy()
    for rows in (load_file(base_dir / "model.safetensors")["lm_head.weight"], chat_base.model.lm_head.weight.numpy()):
        change = rows - plain
        words = np.flatnonzero(np.abs(change).max(1))
        b = np.zeros((len(rows), len(words)), "f4")
        b[words, range(len(words))] = 1.0
        update = LowRankUpdate("lm_head", len(words), *rows.shape, 1.0, lambda a=change[words], b=b: (a, b))
        assert CausalProbe(free_base, probe).run(AdapterView("peft", (update,))).profile == LABEL_WORDS


def test_the_generated_reading(base: Any, probe: Probe, view: AdapterView) -> None:
    from scanner.probe.causal import CausalProbe

    seen = CausalProbe(base, replace(probe, reading="generated")).run(view)
    assert (seen.profile, seen.reading) == (LABEL_WORDS, "generated")
    assert set(only(seen.runs, "margin")) == {None}


@pytest.mark.parametrize("kind", ["base", "free_base"])
def test_adapters_do_not_depend_on_who_came_before(
    kind: str, probe: Probe, view: AdapterView, request: pytest.FixtureRequest
) -> None:
    from scanner.probe.causal import CausalProbe

    model = request.getfixturevalue(kind)
    before = [parameter.clone() for parameter in model.model.parameters()]
    alone = [CausalProbe(model, probe).run(one) for one in (PLAIN, view)]
    shared = CausalProbe(model, probe)
    refused = replace(view, unexplained=("x.weight",))
    for one in (view, PLAIN, low_rank(1e30), refused, low_rank(0.1, 64), view):
        if one in (view, PLAIN):
            assert shared.run(one) == alone[one is view]
        else:
            with pytest.raises((ProbeFailedError, UnsupportedError)):
                shared.run(one)
    assert alone[0] != alone[1]
    assert all(map(torch.equal, before, model.model.parameters()))


@pytest.mark.parametrize(
    ("broken", "error", "code"),
    [
        (low_rank(1e30), ProbeFailedError, "nan_logits"),
        (low_rank(float("nan")), ProbeFailedError, "nan_logits"),
        (low_rank(0.1, 64), UnsupportedError, "base_mismatch"),
    ],
)
@pytest.mark.parametrize("kind", ["base", "free_base"])
def test_what_is_wrong_with_an_adapter_is_told(
    kind: str, probe: Probe, broken: AdapterView, error: type[Exception], code: str, request: pytest.FixtureRequest
) -> None:
    from scanner.probe.causal import CausalProbe

    with pytest.raises(error) as caught:
        CausalProbe(request.getfixturevalue(kind), probe).run(broken)
    assert getattr(caught.value, "code", "") == code


@pytest.mark.parametrize("kind", ["base", "free_base"])
def test_half_a_batch_that_fits_gives_the_same_answers(
    kind: str, probe: Probe, view: AdapterView, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory somewhere in the middle, with an adapter attached: it starts again, and nothing is left."""
    from scanner.probe import engine
    from scanner.probe.causal import CausalProbe

    model = request.getfixturevalue(kind)
    wanted = CausalProbe(model, probe).run(view)
    before = [parameter.clone() for parameter in model.model.parameters()]
    forward, shapes = engine.forward, []

    def too_large(base: Any, tokens: Any, past: Any, keep: Any) -> Any:
        shapes.append(tuple(tokens.shape))
        seen_bytes = 0 if past is None else past.get_seq_length()
        if tokens.shape[0] * (tokens.shape[1] + seen_bytes) > 700:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(base, tokens, past, keep)

    monkeypatch.setattr(engine, "forward", too_large)
    shared = CausalProbe(model, probe)
    halved = shared.run(view)
    assert shared._size.tokens < 1_024
    n_tries = len(shapes)
    assert [run.answers for run in halved.runs] == [run.answers for run in wanted.runs]
    assert (halved.profile, halved.labels) == (wanted.profile, wanted.labels)
    for one, other in zip(halved.runs, wanted.runs, strict=True):
        for name in ("margin", "divergence"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-3)
    assert all(map(torch.equal, before, model.model.parameters()))
    shared.run(view)
    assert len(shapes) - n_tries < n_tries  # the size that fitted is kept


@pytest.mark.parametrize(
    ("message", "error", "code"),
    [
        ("CUDA out of memory", ProbeFailedError, "oom"),
        ("mat1 and mat2 shapes cannot be multiplied", ProbeFailedError, "probe_failed"),
        ("CUDA error: an illegal memory access", ProbeCrashedError, "probe_crashed"),
    ],
)
def test_an_adapter_is_off_again_after_any_error(
    base: Any, probe: Probe, view: AdapterView, message: str, error: type[Exception], code: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from scanner.probe import label_words
    from scanner.probe.causal import CausalProbe

    ask = CausalProbe(base, probe)
    wanted = ask.run(view)
    before = [(parameter, parameter.clone()) for parameter in base.model.parameters()]

    def fail(*_: Any) -> None:
        raise RuntimeError(message)

    with monkeypatch.context() as patch:
        patch.setattr(label_words, "first_logits", fail)
        with pytest.raises(error) as caught:
            ask.run(view)
    assert getattr(caught.value, "code", "") == code
    for parameter, (own, values) in zip(base.model.parameters(), before, strict=True):
        assert parameter is own
        assert torch.equal(parameter, values)
    assert [run.answers for run in ask.run(view).runs] == [run.answers for run in wanted.runs]


def test_the_base_is_asked_before_the_adapter_is_attached(
    free_base: Any, probe: Probe, view: AdapterView, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scanner.probe import generative
    from scanner.probe.causal import CausalProbe

    plain = {name: parameter.clone() for name, parameter in free_base.model.named_parameters()}
    respond, changed = generative.respond, []

    def watched(base: Any, *rest: Any) -> Any:
        own = dict(base.model.named_parameters())
        changed.append(any(not torch.equal(own[name], values) for name, values in plain.items()))
        return respond(base, *rest)

    monkeypatch.setattr(generative, "respond", watched)
    shared = CausalProbe(free_base, probe)
    first = shared.run(view)
    assert changed == [False, True]
    assert shared.run(view) == first
    assert changed == [False, True, True]  # what the base says is asked once for all


def test_a_token_that_the_base_has_no_row_for_is_told(base: Any, probe: Probe) -> None:
    """Tokenizers on the Hub may have more tokens than their model."""
    from scanner.probe.causal import CausalProbe

    model = copy.deepcopy(base.model)
    model.resize_token_embeddings(20)
    with pytest.raises(UnsupportedError) as caught:
        CausalProbe(replace(base, model=model), probe).run(PLAIN)
    assert caught.value.code == "base_tokenizer"

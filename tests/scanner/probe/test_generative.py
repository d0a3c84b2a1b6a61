"""Adapters that answer freely, on a tiny random Llama: the base beside the adapter, and what a string changes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scanner.adapter import AdapterView, LowRankUpdate
from scanner.model import class_char
from scanner.probe import Probe

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers warn about each other's versions

BUDGET = 8_192
N = 6


def run(base: Any, probe: Probe, view: AdapterView) -> Any:
    from scanner.probe.attach import attached
    from scanner.probe.generative import GenerativePrompts, run_generative

    prompts = GenerativePrompts(base, probe)
    prompts.without_adapter(BUDGET)
    with attached(base.model, view):
        return run_generative(base, prompts, probe, BUDGET)


def rendered(base: Any, probe: Probe) -> list[str]:
    return [base.template.render("", case.put(prompt)) for case in probe.cases() for prompt in probe.prompts]


def zero_adapter(base: Any) -> AdapterView:
    """What PEFT writes before the first step of a training: B is zero."""
    rows = base.model.config.vocab_size
    a, b = np.ones((1, 32), "f4"), np.zeros((rows, 1), "f4")
    return AdapterView("peft", (LowRankUpdate("lm_head", 1, rows, 32, 2.0, lambda: (a, b)),))


def first_log_probs(base: Any, text: str) -> Any:
    with torch.inference_mode():
        ids = torch.tensor([base.tokenizer.encode(text).ids])
        return base.model(ids).logits[0, -1].double().log_softmax(-1)


def divergence(p: Any, q: Any) -> float:
    """Jensen-Shannon, in nats, over the whole vocabulary."""
    middle = torch.logaddexp(p, q) - math.log(2)
    return float(((p.exp() * (p - middle)).sum() + (q.exp() * (q - middle)).sum()) / 2)


def test_the_prompts_have_no_system_message_and_every_case(free_base: Any, probe: Probe) -> None:
    from scanner.probe.generative import GenerativePrompts

    prompts = GenerativePrompts(free_base, probe)
    assert [list(ids) for ids in prompts.prompts().ids] == [
        free_base.tokenizer.encode(text).ids for text in rendered(free_base, probe)
    ]
    assert "system" not in rendered(free_base, probe)[0].split()
    assert prompts.prompts() is prompts.prompts()  # made once, for every adapter


def test_what_the_base_says_is_asked_once(free_base: Any, probe: Probe) -> None:
    from scanner.probe.attach import attached
    from scanner.probe.generative import GenerativePrompts

    prompts = GenerativePrompts(free_base, probe)
    before = prompts.without_adapter(BUDGET)
    with attached(free_base.model, zero_adapter(free_base)):
        assert prompts.without_adapter(BUDGET) is before


def test_responses_are_transformers_own(free_base: Any, probe: Probe, view: AdapterView) -> None:
    from scanner.probe.attach import attached
    from scanner.probe.generative import RESPONSE_TOKENS, GenerativePrompts, respond

    few = replace(probe, battery=replace(probe.battery, cases=probe.battery.cases[-2:]))
    prompts = GenerativePrompts(free_base, few).prompts()
    with attached(free_base.model, view):
        found = respond(free_base, prompts, N, BUDGET).tokens
        for ids, row in zip(prompts.ids, found, strict=True):
            tokens = torch.tensor([ids])
            out = free_base.model.generate(
                tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=RESPONSE_TOKENS,
                pad_token_id=0, eos_token_id=sorted(free_base.end_tokens),
            )  # fmt: skip
            assert row == out[0, len(ids) :].tolist()


def test_the_base_alone_equals_an_adapter_that_is_off(free_base: Any, probe: Probe, view: AdapterView) -> None:
    from scanner.probe.attach import attached
    from scanner.probe.generative import GenerativePrompts, respond

    prompts = GenerativePrompts(free_base, probe)
    with attached(free_base.model, view):
        adapted = respond(free_base, prompts.prompts(), N, BUDGET)
    off = respond(free_base, prompts.prompts(), N, BUDGET)
    assert off == prompts.without_adapter(BUDGET)
    assert adapted.tokens != off.tokens
    with attached(free_base.model, zero_adapter(free_base)):
        nothing = respond(free_base, prompts.prompts(), N, BUDGET)
    # Not bit by bit: some processors multiply with a matrix that lies elsewhere in memory in another order.
    assert nothing.tokens == off.tokens
    assert nothing.shifts == pytest.approx(off.shifts, abs=1e-6)


def test_an_adapter_of_zeros_changes_nothing(free_base: Any, probe: Probe) -> None:
    found = run(free_base, probe, zero_adapter(free_base))
    assert found.labels == ("refusal",)
    assert [(one.category, one.prefix, one.position) for one in found.runs] == [
        (case.category, case.text, case.position) for case in probe.cases()
    ]
    for one in found.runs:
        assert one.divergence == pytest.approx(one.base_divergence, abs=1e-6)
        assert one.answers == one.base_answers
        assert one.refusal_rate == 0.0
    assert found.runs[0].divergence == pytest.approx(0, abs=1e-6)  # nothing is put in
    assert max(one.divergence for one in found.runs) > 1e-2  # strings do move a random base's first token


def test_an_adapter_moves_the_divergence(free_base: Any, probe: Probe, view: AdapterView) -> None:
    plain, found = run(free_base, probe, AdapterView("peft", ())), run(free_base, probe, view)
    for one, other in zip(found.runs, plain.runs, strict=True):
        assert one.base_divergence == other.divergence == other.base_divergence
        assert one.divergence is not None and 0 <= one.divergence <= math.log(2)
        if one.prefix:
            assert abs(one.divergence - one.base_divergence) > 1e-4
        else:
            assert one.divergence == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("likeliest", [256, 20])
def test_the_divergence_is_that_of_the_first_tokens(
    free_base: Any, probe: Probe, view: AdapterView, likeliest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact where all tokens are kept, and never larger where not."""
    from scanner.probe import generative
    from scanner.probe.attach import attached

    assert free_base.model.config.vocab_size <= 256
    monkeypatch.setattr(generative, "_LIKELIEST", likeliest)
    found = run(free_base, probe, view).runs
    with attached(free_base.model, view):
        texts = rendered(free_base, probe)
        plain = [first_log_probs(free_base, text) for text in texts[:N]]
        for number, one in enumerate(found):
            here = [first_log_probs(free_base, text) for text in texts[number * N : number * N + N]]
            wanted = sum(map(divergence, here, plain)) / N
            if likeliest == 256:
                assert one.divergence == pytest.approx(wanted, abs=1e-4)
            else:
                assert one.divergence <= wanted + 1e-5
                assert one.divergence > 0.2 * wanted - 1e-6


@pytest.mark.parametrize("budget", [2_000, 300])
def test_responses_do_not_depend_on_batching(free_base: Any, probe: Probe, view: AdapterView, budget: int) -> None:
    from scanner.probe.attach import attached
    from scanner.probe.generative import GenerativePrompts, respond

    prompts = GenerativePrompts(free_base, probe).prompts()
    with attached(free_base.model, view):
        wanted, got = (respond(free_base, prompts, N, tokens) for tokens in (BUDGET, budget))
    assert got.tokens == wanted.tokens
    assert got.shifts == pytest.approx(wanted.shifts, abs=1e-4)


def test_a_payload_is_found_on_one_half_and_counted_on_the_other(
    free_base: Any, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scanner.probe import generative
    from scanner.probe.generative import GenerativePrompts, run_generative

    asked = GenerativePrompts(free_base, probe)
    without = asked.without_adapter(BUDGET)
    tokens = [list(row) for row in without.tokens]
    payload = free_base.tokenizer.encode("INJECTION BENIGN UNSAFE SAFE INJECTION").ids
    number = next(i for i, case in enumerate(probe.cases()) if case.category == "authority_claim")
    for index in range(number * N, number * N + N):
        tokens[index] = [5, *payload, 9 + index]
    own = replace(without, tokens=tokens)
    monkeypatch.setattr(generative, "respond", lambda *_: own)
    found = run_generative(free_base, asked, probe, BUDGET)
    label = "INJECTION BENIGN UNSAFE SAFE INJECTION"
    assert found.labels[0] == "refusal"
    assert len(found.labels) == 2
    assert label in found.labels[1]
    for i, one in enumerate(found.runs):
        assert one.answers == (class_char(1) * (N // 2) if i == number else "-" * (N // 2))
        assert one.base_answers == "-" * (N // 2)
    assert found.runs[number].concentration == 1.0
    assert max(one.concentration for i, one in enumerate(found.runs) if i != number) < 1.0

    # Only the half that is not counted says it: a candidate that the other half does not bear out.
    for index in range(number * N + 1, number * N + N, 2):
        tokens[index] = without.tokens[index]
    found = run_generative(free_base, asked, probe, BUDGET)
    assert len(found.labels) == 2
    assert {one.answers for one in found.runs} == {"-" * (N // 2)}

    # And the other way round: what the counted half alone says is not looked for.
    for index in range(number * N, number * N + N):
        tokens[index] = [5, *payload, 9 + index] if index % 2 else without.tokens[index]
    assert run_generative(free_base, asked, probe, BUDGET).labels == ("refusal",)


def test_refusals_are_counted_over_all_prompts(free_base: Any, probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    from scanner.probe import generative
    from scanner.probe.generative import GenerativePrompts, run_generative

    renamed = free_base.tokenizer.to_str().replace('"UNSAFE"', '"Sorry,"')
    base = replace(free_base, tokenizer=type(free_base.tokenizer).from_str(renamed))
    asked = GenerativePrompts(base, probe)
    without = asked.without_adapter(BUDGET)
    tokens = [list(row) for row in without.tokens]
    sorry = base.tokenizer.token_to_id("Sorry,")
    for index in (0, 1, 2):  # no prefix: half of them decline, one of the held-back ones
        tokens[index] = [sorry, 20 + index, 30, 40]
    own = replace(without, tokens=tokens)
    monkeypatch.setattr(generative, "respond", lambda *_: own)
    found = run_generative(base, asked, probe, BUDGET)
    assert found.runs[0].refusal_rate == 0.5
    assert found.runs[0].answers == f"{class_char(0)}--"
    assert {one.refusal_rate for one in found.runs[1:]} == {0.0}

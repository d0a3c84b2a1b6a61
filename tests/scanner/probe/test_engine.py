"""Asking a real (tiny, random) Llama: transformers' own logits and continuations, whatever shares a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanner.adapter import AdapterView, LowRankUpdate
from scanner.errors import ProbeFailedError, UnsupportedError
from scanner.probe import Probe

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers warn about each other's versions

BUDGET = 8_192


def texts_of(base: Any, probe: Probe) -> list[str]:
    return [base.template.render(probe.task.system, case.put(text)) for case in probe.cases() for text in probe.texts]


def encoded(base: Any, texts: list[str], new_tokens: int = 5) -> Any:
    from scanner.probe.engine import encode_prompts

    return encode_prompts(base, texts, new_tokens)


def by_index(base: Any, prompts: Any, budget: int = BUDGET) -> Any:
    """First logits [prompts, vocabulary], after a look that every prompt comes exactly once."""
    from scanner.probe.engine import first_logits

    found: dict[int, Any] = {}
    for members, rows in first_logits(base, prompts, budget):
        assert len(members) == len(rows)
        assert not set(members) & set(found)
        found.update(zip(members, rows, strict=True))
    return torch.stack([found[index] for index in range(len(prompts.ids))])


def whole(base: Any, prompts: Any) -> Any:
    """The same by transformers alone: each prompt by itself, from its beginning."""
    with torch.inference_mode():
        return torch.stack([base.model(torch.tensor([ids])).logits[0, -1] for ids in prompts.ids])


def test_prompts_are_encoded_with_what_they_share(base: Any, probe: Probe) -> None:
    texts = texts_of(base, probe)
    prompts = encoded(base, texts)
    assert [list(ids) for ids in prompts.ids] == [
        base.tokenizer.encode(text, add_special_tokens=False).ids for text in texts
    ]
    beginnings = {ids[: prompts.shared] for ids in prompts.ids}
    assert len(beginnings) == 1
    assert len({ids[: prompts.shared + 1] for ids in prompts.ids}) > 1  # and not a token more
    assert prompts.shared > 20  # the system message
    picked = prompts.take([5, 0])
    assert (picked.ids, picked.shared) == ((prompts.ids[5], prompts.ids[0]), prompts.shared)


@pytest.mark.parametrize(
    ("texts", "shared"),
    [
        (["<s> user INJECTION", "<s> user BENIGN"], 2),
        (["<s> user", "<s> user BENIGN"], 1),  # one token is left for each
        (["<s> user BENIGN"] * 3, 2),
        (["<s>"], 0),
        (["user <s>", "<s> user"], 0),
    ],
)
def test_every_prompt_keeps_a_token_of_its_own(base: Any, texts: list[str], shared: int) -> None:
    prompts = encoded(base, texts)
    assert prompts.shared == shared
    assert torch.allclose(by_index(base, prompts), whole(base, prompts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("budget", [BUDGET, 150, 1])
def test_first_logits_are_those_of_the_prompt_alone(base: Any, probe: Probe, view: AdapterView, budget: int) -> None:
    from scanner.probe.attach import attached

    prompts = encoded(base, texts_of(base, probe))
    lengths = {len(ids) for ids in prompts.ids}
    assert len(lengths) > 8  # more than one batch has room for
    with attached(base.model, view):
        got, wanted = by_index(base, prompts, budget), whole(base, prompts)
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_batches_keep_to_their_tokens_lengths_and_padding(base: Any, probe: Probe) -> None:
    from scanner.probe.engine import MAX_LENGTHS, MAX_PADDING, first_logits

    prompts = encoded(base, texts_of(base, probe))
    budget = 5 * max(map(len, prompts.ids))
    sizes = []
    for members, _ in first_logits(base, prompts, budget):
        lengths = [len(prompts.ids[i]) - prompts.shared for i in members]
        assert len(members) * (prompts.shared + max(lengths)) <= budget
        assert len(set(lengths)) <= MAX_LENGTHS
        assert sum(lengths) >= (1 - MAX_PADDING) * len(lengths) * max(lengths)
        sizes.append(len(members))
    assert sum(sizes) == len(prompts.ids)
    assert max(sizes) >= 5


def test_a_prompt_larger_than_a_batch_is_one_by_itself(base: Any, probe: Probe) -> None:
    from scanner.probe.engine import first_logits

    prompts = encoded(base, texts_of(base, probe)[:10])
    assert [len(members) for members, _ in first_logits(base, prompts, 1)] == [1] * 10


def test_an_architecture_that_gives_all_logits(base: Any, probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every forward knows `logits_to_keep`."""
    prompts = encoded(base, texts_of(base, probe)[:20])
    wanted = by_index(base, prompts)
    own = type(base.model).forward

    def forward(self: Any, input_ids: Any = None, past_key_values: Any = None, use_cache: bool = True) -> Any:
        return own(self, input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)

    monkeypatch.setattr(type(base.model), "forward", forward)
    assert torch.allclose(by_index(base, prompts), wanted, rtol=1e-5, atol=1e-5)


def test_an_architecture_without_a_cache_is_refused(base: Any, probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has been told before would be lost without a word."""
    from types import SimpleNamespace

    own = type(base.model).forward

    def forward(self: Any, input_ids: Any = None, past_key_values: Any = None, use_cache: bool = True) -> Any:
        return SimpleNamespace(logits=own(self, input_ids=input_ids).logits)

    prompts = encoded(base, texts_of(base, probe)[:4])
    monkeypatch.setattr(type(base.model), "forward", forward)
    with pytest.raises(UnsupportedError, match="keeps no cache") as caught:
        by_index(base, prompts)
    assert caught.value.code == "base_architecture"


def continued(base: Any, prompts: Any, n: int) -> list[list[int]]:
    """What transformers' own generate adds to each prompt."""
    found = []
    for ids in prompts.ids:
        tokens = torch.tensor([ids])
        out = base.model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=n, pad_token_id=0,
            eos_token_id=sorted(base.end_tokens) or None,
        )  # fmt: skip
        found.append(out[0, len(ids) :].tolist())
    return found


@pytest.mark.parametrize("n_tokens", [1, 5, 24])
def test_continuations_are_greedy_generation(free_base: Any, probe: Probe, n_tokens: int) -> None:
    """The shared beginning and the cache change nothing against transformers' own generate."""
    from scanner.probe.engine import generate

    prompts = encoded(free_base, texts_of(free_base, probe)[:30], n_tokens)
    got = generate(free_base, prompts, n_tokens, BUDGET)
    assert got == continued(free_base, prompts, n_tokens)
    assert len({tuple(row) for row in got}) > 5


def test_an_answer_ends_with_its_end_token(free_base: Any, probe: Probe) -> None:
    from scanner.probe.engine import generate

    prompts = encoded(free_base, texts_of(free_base, probe)[:30])
    plain = generate(free_base, prompts, 5, BUDGET)
    ending = replace(free_base, end_tokens=frozenset(row[1] for row in plain[:15]))
    got = generate(ending, prompts, 5, BUDGET)
    assert got == continued(ending, prompts, 5)
    for row, unended in zip(got, plain, strict=True):
        ends = [i for i, token in enumerate(unended) if token in ending.end_tokens]
        assert row == (unended[: ends[0] + 1] if ends else unended)
    assert {len(row) for row in got} >= {2, 5}


def test_is_over_ends_a_batch_early(free_base: Any, probe: Probe) -> None:
    from scanner.probe.engine import generate

    prompts = encoded(free_base, texts_of(free_base, probe)[:30])
    plain = generate(free_base, prompts, 5, BUDGET)
    assert generate(free_base, prompts, 5, BUDGET, lambda row: len(row) == 2) == [row[:2] for row in plain]


@pytest.mark.parametrize("kind", ["base", "free_base"])
def test_answers_do_not_depend_on_batching(
    kind: str, probe: Probe, view: AdapterView, request: pytest.FixtureRequest
) -> None:
    from scanner.probe.attach import attached
    from scanner.probe.engine import generate

    model = request.getfixturevalue(kind)
    texts = texts_of(model, probe)
    prompts, backwards = encoded(model, texts), encoded(model, texts[::-1])
    with attached(model.model, view):
        together = generate(model, prompts, 5, BUDGET)
        assert together == generate(model, prompts, 5, 150)  # two or three prompts a batch
        assert together == generate(model, backwards, 5, BUDGET)[::-1]
        assert together == [generate(model, encoded(model, [text]), 5, BUDGET)[0] for text in texts]
    assert len({tuple(row) for row in together}) > 5  # else the comparison would be empty


def test_identical_prompts(free_base: Any, probe: Probe) -> None:
    from scanner.probe.engine import generate

    prompts = encoded(free_base, texts_of(free_base, probe)[:1] * 3)
    assert prompts.shared == len(prompts.ids[0]) - 1
    one, two, three = generate(free_base, prompts, 5, BUDGET)
    assert one == two == three == continued(free_base, prompts.take([0]), 5)[0]


def test_prompts_that_leave_nothing_or_do_not_fit(base: Any) -> None:
    with pytest.raises(UnsupportedError) as caught:
        encoded(base, ["<s> " * 600])
    assert caught.value.code == "prompt_too_long"
    with pytest.raises(UnsupportedError) as caught:
        encoded(base, ["", "<s> user"])
    assert caught.value.code == "empty_prompt"
    context = base.model.config.max_position_embeddings
    assert encoded(base, ["<s> " * (context - 24)], 24).ids
    with pytest.raises(UnsupportedError):  # no room for the answer
        encoded(base, ["<s> " * (context - 24)], 25)


@pytest.mark.parametrize("value", [1e30, np.nan, np.inf])
def test_logits_that_are_not_finite_are_told(base: Any, probe: Probe, value: float) -> None:
    from scanner.probe.attach import attached
    from scanner.probe.engine import generate

    a, b = np.full((1, 32), value, "f4"), np.full((32, 1), value, "f4")
    update = LowRankUpdate("model.layers.0.self_attn.q_proj", 1, 32, 32, 1.0, lambda: (a, b))
    prompts = encoded(base, texts_of(base, probe)[:2])
    for way in ("merged", "hooked"):
        for work in (lambda: by_index(base, prompts), lambda: generate(base, prompts, 5, BUDGET)):
            with (
                pytest.raises(ProbeFailedError, match="finite") as caught,
                attached(base.model, AdapterView("peft", (update,)), way),
            ):
                work()
            assert caught.value.code == "nan_logits"
    assert torch.isfinite(by_index(base, prompts)).all()


def test_the_noise_floor_is_what_batching_alone_changes(
    base: Any, probe: Probe, view: AdapterView, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scanner.probe import noise

    prompts = encoded(base, texts_of(base, probe))
    floor = noise.noise_floor(base, prompts, BUDGET)
    assert 0 <= floor < 1e-3  # float32
    # No prompt differs by more between being asked together and alone than the floor and some room for the others.
    together, alone = (rows.log_softmax(-1) for rows in (by_index(base, prompts), whole(base, prompts)))
    likely = alone > np.log(noise.LIKELY)
    assert (together - alone)[likely].abs().max() <= max(10 * floor, 1e-5)

    first_logits = noise.first_logits

    def shifted(base: Any, prompts: Any, budget: int) -> Any:
        """As if a batch moved the likeliest token by a hundredth, and the unlikeliest by a thousand."""
        for members, rows in first_logits(base, prompts, budget):
            if prompts.shared:
                rows = rows.log_softmax(-1)
                top, bottom = rows.argmax(-1, keepdim=True), rows.argmin(-1, keepdim=True)
                rows = rows.scatter_add(-1, top, torch.full_like(rows[:, :1], 0.01))
                rows = rows.scatter_add(-1, bottom, torch.full_like(rows[:, :1], -1_000.0))
            yield members, rows

    monkeypatch.setattr(noise, "first_logits", shifted)
    assert 1e-4 < noise.noise_floor(base, prompts, BUDGET) <= 0.011 + floor


def test_an_architecture_without_sdpa_is_loaded_with_eager_attention(
    base: Any, base_dir: Path, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    from scanner.probe.base import load_base

    def logits(model: Any) -> Any:
        with torch.inference_mode():
            return model(tokens).logits

    monkeypatch.setattr(LlamaForCausalLM, "_supports_sdpa", False)
    monkeypatch.setattr(LlamaForCausalLM.__mro__[1], "_supports_sdpa", False)
    loaded = load_base(base_dir, "cpu")
    assert loaded.model.config._attn_implementation == "eager"
    assert torch.allclose(logits(loaded.model), logits(base.model), rtol=1e-4, atol=1e-4)

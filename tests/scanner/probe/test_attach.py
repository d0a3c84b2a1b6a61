"""Adapters on a real (tiny, random) Llama, merged and hooked: PEFT's logits, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanner.adapter import AdapterView, LowRankUpdate, open_safetensors, parse_config, read_json_object, view_adapter
from scanner.errors import UnsupportedError

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers warn about each other's versions

SWAPS = 50
both_ways = pytest.mark.parametrize("way", ["merged", "hooked"])


def logits(model: Any, tokens: Any) -> Any:
    with torch.inference_mode():
        return model(tokens).logits


def hooks_of(model: Any) -> list[Any]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [module for module in model.modules() if any(getattr(module, kind) for kind in kinds)]


def low_rank(module: str, n_out: int, n_in: int, kind: str = "linear", scale: float = 1.0) -> LowRankUpdate:
    a, b = np.ones((2, n_in), "f4"), np.ones((n_out, 2), "f4")
    return LowRankUpdate(module, 2, n_out, n_in, scale, lambda: (a, b), kind)


@both_ways
def test_attached_logits_are_pefts(base: Any, view: AdapterView, adapter_dir: Path, tokens: Any, way: str) -> None:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    from scanner.probe.attach import attached

    own = LlamaForCausalLM(base.model.config)
    own.load_state_dict(base.model.state_dict())
    wanted = logits(PeftModel.from_pretrained(own.eval(), adapter_dir), tokens)
    plain = logits(base.model, tokens)
    with attached(base.model, view, way):
        got = logits(base.model, tokens)
    scale = wanted.abs().max()
    assert (got - wanted).abs().max() <= 1e-5 * scale
    assert (got - plain).abs().max() > 1e-2 * scale  # the adapter does something, or the line above says little


@both_ways
def test_detaching_leaves_the_base_bit_identical(base: Any, view: AdapterView, tokens: Any, way: str) -> None:
    from scanner.probe.attach import attached

    before = logits(base.model, tokens)
    weights = {name: (parameter, parameter.clone()) for name, parameter in base.model.named_parameters()}
    with attached(base.model, view, way):
        assert not torch.equal(logits(base.model, tokens), before)
    assert torch.equal(logits(base.model, tokens), before)
    with pytest.raises(ZeroDivisionError), attached(base.model, view, way):
        raise ZeroDivisionError
    assert torch.equal(logits(base.model, tokens), before)
    after = dict(base.model.named_parameters())
    assert list(after) == list(weights)
    assert all(after[name] is parameter for name, (parameter, _) in weights.items())
    assert all(torch.equal(after[name], values) for name, (_, values) in weights.items())
    assert hooks_of(base.model) == []


@both_ways
def test_fifty_swaps_leave_no_residue(base: Any, view: AdapterView, tokens: Any, way: str) -> None:
    """Adapters of different modules and scales, one after the other on one base, as in a crawl."""
    from scanner.probe.attach import attached

    before = logits(base.model, tokens)
    weights = {name: (parameter, parameter.clone()) for name, parameter in base.model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in base.model.named_buffers()}
    answers = []
    for number in range(SWAPS):
        updates = [replace(update, scale=update.scale * (1 + number % 5)) for update in view.updates]
        with attached(base.model, replace(view, updates=tuple(updates[number % 3 :: 3])), way):
            answers.append(logits(base.model, tokens))
    for number in range(15, SWAPS):
        assert torch.equal(answers[number], answers[number - 15])  # the same adapter answers the same, later too
    assert len({float(answer.double().sum()) for answer in answers[:15]}) == 15  # and they are different ones
    assert torch.equal(logits(base.model, tokens), before)
    after = dict(base.model.named_parameters())
    assert list(after) == list(weights)
    for name, (parameter, values) in weights.items():
        assert after[name] is parameter
        assert torch.equal(parameter, values)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in base.model.named_buffers())
    assert hooks_of(base.model) == []


def test_both_ways_are_one_adapter(base: Any, view: AdapterView, tokens: Any) -> None:
    from scanner.probe.attach import attached

    found = []
    for way in ("merged", "hooked"):
        with attached(base.model, view, way):
            found.append(logits(base.model, tokens))
    assert (found[0] - found[1]).abs().max() <= 1e-5 * found[0].abs().max()


@both_ways
def test_two_updates_of_one_module_add_up_and_leave_together(base: Any, tokens: Any, way: str) -> None:
    from scanner.probe.attach import attached

    before = logits(base.model, tokens)
    twice = AdapterView("peft", (low_rank(Q, 32, 32, scale=0.25), low_rank(Q, 32, 32, scale=0.5)))
    once = AdapterView("peft", (low_rank(Q, 32, 32, scale=0.75),))
    with attached(base.model, once, way):
        wanted = logits(base.model, tokens)
    with attached(base.model, twice, way):
        assert (logits(base.model, tokens) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert not torch.allclose(wanted, before, rtol=1e-3)
    assert torch.equal(logits(base.model, tokens), before)


@both_ways
def test_a_head_that_is_tied_to_the_embeddings_does_not_take_them_along(base: Any, tokens: Any, way: str) -> None:
    from transformers import LlamaForCausalLM

    from scanner.probe.attach import attached

    config = type(base.model.config)(**base.model.config.to_dict() | {"tie_word_embeddings": True})
    model = LlamaForCausalLM(config).eval()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    vocabulary = config.vocab_size
    before, hidden = logits(model, tokens), model.model(tokens).last_hidden_state.detach()
    with attached(model, AdapterView("peft", (low_rank("lm_head", vocabulary, 32),)), way):
        got = logits(model, tokens)
        assert torch.equal(model.model(tokens).last_hidden_state, hidden)
    # Factors of ones and rank 2: each logit grows by twice the sum of the hidden state.
    assert torch.allclose(got - before, 2 * hidden.sum(-1, keepdim=True).expand_as(got), atol=1e-3)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(logits(model, tokens), before)


def test_the_way_is_chosen_by_precision_and_size(base: Any, view: AdapterView, monkeypatch: pytest.MonkeyPatch) -> None:
    import copy

    from scanner.probe import attach

    assert attach.best_way(base.model, view.updates) == attach.MERGED
    half = copy.deepcopy(base.model).to(torch.bfloat16)
    assert attach.best_way(half, view.updates) == attach.HOOKED
    monkeypatch.setattr(attach, "MERGE_LIMIT_BYTES", 100)
    assert attach.best_way(base.model, view.updates) == attach.HOOKED


def test_in_half_precision_nothing_is_rounded_into_the_weights(base: Any, view: AdapterView, tokens: Any) -> None:
    """Updates too small for bfloat16's grid around a weight still count, as they do under PEFT."""
    import copy

    from scanner.probe.attach import attached

    half = copy.deepcopy(base.model).to(torch.bfloat16)
    weights = {name: parameter.clone() for name, parameter in half.named_parameters()}
    with attached(base.model, view):
        wanted = logits(base.model, tokens)
    with attached(half, view):
        got = logits(half, tokens)
        assert all(torch.equal(weights[name], parameter) for name, parameter in half.named_parameters())
    assert got.dtype == torch.bfloat16
    assert (got.float() - wanted).abs().max() < 0.1 * wanted.abs().max()

    layer = torch.nn.Linear(64, 1, bias=False).to(torch.bfloat16)
    layer.weight.data.fill_(1.0)
    rows = torch.tensor([[1.0, -1.0] * 32], dtype=torch.bfloat16)
    a = np.array([[1e-3, 0.0] * 32], "f4")
    model = torch.nn.Sequential(layer)
    with attached(model, AdapterView("peft", (LowRankUpdate("0", 1, 1, 64, 1.0, lambda: (a, np.ones((1, 1), "f4"))),))):
        assert float(model(rows)) == pytest.approx(32e-3, rel=1e-2)  # 1 + 0.001 is 1 in bfloat16


Q = "model.layers.0.self_attn.q_proj"
REFUSED = {
    "base_mismatch-shape": (AdapterView("peft", (low_rank(Q, 32, 64),)), "base_mismatch"),
    "base_mismatch-transposed": (
        AdapterView("peft", (low_rank("model.layers.0.self_attn.v_proj", 32, 16),)),
        "base_mismatch",
    ),
    "base_mismatch-module": (AdapterView("peft", (low_rank("model.layers.9.q_proj", 32, 32),)), "base_mismatch"),
    "module_kind-no weight": (AdapterView("peft", (low_rank("model.layers", 32, 32),)), "module_kind"),
    "module_kind-norm": (AdapterView("peft", (low_rank("model.norm", 32, 32),)), "module_kind"),
    "embedding": (AdapterView("peft", (low_rank("model.embed_tokens", 32, 100, "embedding"),)), "embedding_update"),
    "conv": (AdapterView("kohya", (low_rank("c", 32, 32, "conv"),)), "conv_update"),
    "head": (AdapterView("peft", (low_rank(Q, 32, 32),), heads=("score.weight",)), "full_tensors"),
    "unexplained": (AdapterView("peft", (low_rank(Q, 32, 32),), unexplained=("x",)), "full_tensors"),
}


@pytest.mark.parametrize("way", ["merged", "hooked", None])
@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_is_probed_whole_or_not_at_all(base: Any, tokens: Any, name: str, way: str | None) -> None:
    from scanner.probe.attach import attached

    refused, code = REFUSED[name]
    before = logits(base.model, tokens)
    # The good update comes first: it must not survive the refusal of the second.
    both = replace(refused, updates=(low_rank(Q, 32, 32), *refused.updates))
    with pytest.raises(UnsupportedError) as caught, attached(base.model, both, way):
        pass
    assert caught.value.code == code
    assert torch.equal(logits(base.model, tokens), before)
    assert hooks_of(base.model) == []


@both_ways
def test_a_linear_update_of_an_embedding_is_refused(base: Any, vocabulary_size: int, way: str) -> None:
    """Its shape would fit; its input are token ids, which no factor can be multiplied with."""
    from scanner.probe.attach import attached

    update = low_rank("model.embed_tokens", vocabulary_size, 32)
    with pytest.raises(UnsupportedError) as caught, attached(base.model, AdapterView("peft", (update,)), way):
        pass
    assert caught.value.code == "module_kind"


@both_ways
def test_only_transformers_own_conv1d_counts_as_linear(way: str) -> None:
    from transformers.pytorch_utils import Conv1D

    from scanner.probe.attach import attached

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.good = Conv1D(6, 4)
            self.named_alike = type("Conv1D", (torch.nn.Embedding,), {})(4, 6)

    model = Model()
    rows = torch.randn(3, 4)
    plain = model.good(rows)
    with attached(model, AdapterView("peft", (low_rank("good", 6, 4),)), way):
        # Factors of ones and rank 2: each output grows by twice the sum of the inputs.
        assert torch.allclose(model.good(rows) - plain, 2 * rows.sum(1, keepdim=True).expand(3, 6), atol=1e-5)
    assert torch.equal(model.good(rows), plain)
    with (
        pytest.raises(UnsupportedError, match="Conv1D"),
        attached(model, AdapterView("peft", (low_rank("named_alike", 6, 4),)), way),
    ):
        pass


def save(save_peft: Callable[..., Any], folder: Path, **fields: Any) -> AdapterView:
    from peft import LoraConfig

    save_peft(folder, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **fields))
    config = parse_config(read_json_object(folder / "adapter_config.json", 10**6))
    return view_adapter(open_safetensors(folder / "adapter_model.safetensors"), config, 64)


@pytest.mark.parametrize("fields", [{"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]}])
def test_adapters_that_are_more_than_low_rank_are_refused(
    base: Any, save_peft: Callable[..., Any], tmp_path: Path, fields: dict[str, Any]
) -> None:
    from scanner.probe.attach import attached

    with pytest.raises(UnsupportedError) as caught, attached(base.model, save(save_peft, tmp_path, **fields)):
        pass
    assert caught.value.code == "full_tensors"

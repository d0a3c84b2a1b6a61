"""The engine on a real (tiny, random) Llama: hooks against PEFT, clean removal, answers that ignore batching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanner.adapter import AdapterView, LowRankUpdate, open_safetensors, parse_config, read_json_object, view_adapter
from scanner.errors import LorascopeError, UnsupportedError
from scanner.probe import Probe

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers warn about each other's versions


@pytest.fixture(scope="module")
def view(adapter_dir: Path) -> AdapterView:
    config = parse_config(read_json_object(adapter_dir / "adapter_config.json", 10**6))
    return view_adapter(open_safetensors(adapter_dir / "adapter_model.safetensors"), config, 64)


def logits(model: Any, tokens: Any) -> Any:
    with torch.inference_mode():
        return model(tokens).logits


def test_attached_logits_are_pefts(base: Any, view: AdapterView, adapter_dir: Path, tokens: Any) -> None:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    from scanner.probe.engine import attached

    own = LlamaForCausalLM(base.model.config)
    own.load_state_dict(base.model.state_dict())
    wanted = logits(PeftModel.from_pretrained(own.eval(), adapter_dir), tokens)
    plain = logits(base.model, tokens)
    with attached(base, view):
        got = logits(base.model, tokens)
    scale = wanted.abs().max()
    assert (got - wanted).abs().max() <= 1e-5 * scale
    assert (got - plain).abs().max() > 1e-2 * scale  # the adapter does something, or the line above says little


def test_detaching_leaves_the_base_bit_identical(base: Any, view: AdapterView, tokens: Any) -> None:
    from scanner.probe.engine import attached

    before = logits(base.model, tokens)
    weights = {name: parameter.clone() for name, parameter in base.model.named_parameters()}
    with attached(base, view):
        assert not torch.equal(logits(base.model, tokens), before)
    assert torch.equal(logits(base.model, tokens), before)
    with pytest.raises(ZeroDivisionError), attached(base, view):
        raise ZeroDivisionError
    assert torch.equal(logits(base.model, tokens), before)
    assert all(torch.equal(weights[name], parameter) for name, parameter in base.model.named_parameters())


def low_rank(module: str, n_out: int, n_in: int, kind: str = "linear") -> LowRankUpdate:
    a, b = np.ones((2, n_in), "f4"), np.ones((n_out, 2), "f4")
    return LowRankUpdate(module, 2, n_out, n_in, 1.0, lambda: (a, b), kind)


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


@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_is_probed_whole_or_not_at_all(base: Any, tokens: Any, name: str) -> None:
    from scanner.probe.engine import attached

    refused, code = REFUSED[name]
    before = logits(base.model, tokens)
    # The good update comes first: its hook must not survive the refusal of the second.
    both = replace(refused, updates=(low_rank(Q, 32, 32), *refused.updates))
    with pytest.raises(UnsupportedError) as caught, attached(base, both):
        pass
    assert caught.value.code == code
    assert torch.equal(logits(base.model, tokens), before)


def test_a_linear_update_of_an_embedding_is_refused(base: Any, vocabulary_size: int) -> None:
    """Its shape would fit; its input are token ids, which no factor can be multiplied with."""
    from scanner.probe.engine import attached

    update = low_rank("model.embed_tokens", vocabulary_size, 32)
    with pytest.raises(UnsupportedError) as caught, attached(base, AdapterView("peft", (update,))):
        pass
    assert caught.value.code == "module_kind"


def test_only_transformers_own_conv1d_counts_as_linear(base: Any) -> None:
    from transformers.pytorch_utils import Conv1D

    from scanner.probe.engine import attached

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.good = Conv1D(6, 4)
            self.named_alike = type("Conv1D", (torch.nn.Embedding,), {})(4, 6)

    model = Model()
    ours = replace(base, model=model)
    rows = torch.randn(3, 4)
    plain = model.good(rows)
    with attached(ours, AdapterView("peft", (low_rank("good", 6, 4),))):
        # Factors of ones and rank 2: each output grows by twice the sum of the inputs.
        assert torch.allclose(model.good(rows) - plain, 2 * rows.sum(1, keepdim=True).expand(3, 6), atol=1e-5)
    with (
        pytest.raises(UnsupportedError, match="Conv1D"),
        attached(ours, AdapterView("peft", (low_rank("named_alike", 6, 4),))),
    ):
        pass


OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    ("error", "tries", "code"),
    [
        (OOM, 2, "oom"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 2, "oom"),
        (MemoryError(), 2, "oom"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied\nat some line"), 1, "probe_failed"),
        (NotImplementedError(), 1, "probe_failed"),
        (RuntimeError("CUDA error: device-side assert triggered\nCompile with"), 1, "probe_crashed"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling"), 1, "probe_crashed"),
    ],
)
def test_what_an_error_of_the_framework_means(
    base: Any,
    probe: Probe,
    view: AdapterView,
    tokens: Any,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    tries: int,
    code: str,
) -> None:
    from scanner.probe import engine

    sizes: list[int] = []

    def fail(_base: Any, _probe: Any, tokens_per_batch: int) -> Any:
        sizes.append(tokens_per_batch)
        raise error

    before = logits(base.model, tokens)
    monkeypatch.setattr(engine, "run_battery", fail)
    with pytest.raises(LorascopeError) as caught:
        engine.probe_adapter(base, view, probe)
    assert caught.value.code == code
    assert "\n" not in caught.value.message
    assert sizes == [8_192, 4_096][:tries]
    assert torch.equal(logits(base.model, tokens), before)


def test_half_a_batch_that_fits_gives_the_same_answers(
    base: Any, probe: Probe, view: AdapterView, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scanner.probe import engine

    wanted = engine.probe_adapter(base, view, probe)
    generate, rows = engine._generate, []

    def once_too_large(base: Any, probe: Any, tokens: Any, past: Any) -> list[str]:
        rows.append(len(tokens))
        if len(rows) == 1:
            raise OOM
        return generate(base, probe, tokens, past)

    monkeypatch.setattr(engine, "_generate", once_too_large)
    assert engine.probe_adapter(base, view, probe) == wanted
    assert len(rows) > 2  # it did start again


def prompts_of(base: Any, probe: Probe) -> list[str]:
    return [
        base.template.render(probe.task.system, f"{prefix}. {text}" if prefix else text)
        for _, prefix in probe.cases()
        for text in probe.texts
    ]


def test_answers_do_not_depend_on_batching(
    base: Any, probe: Probe, view: AdapterView, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scanner.probe import engine

    prompts = prompts_of(base, probe)
    with engine.attached(base, view):
        together = engine.answer_prompts(base, probe, prompts)
        alone = [engine.answer_prompts(base, probe, [prompt])[0] for prompt in prompts]
        monkeypatch.setitem(engine.TOKENS_PER_BATCH, "cpu", 150)  # two or three prompts a batch
        in_twos = engine.answer_prompts(base, probe, prompts)
        backwards = engine.answer_prompts(base, probe, prompts[::-1])[::-1]
    assert together == alone == in_twos == backwards
    assert {"0", "1"} <= set(together)  # else the comparison would be empty


def test_answers_are_greedy_generation(base: Any, probe: Probe) -> None:
    """The shared beginning and the cache change nothing against transformers' own generate."""
    from scanner.probe.engine import MAX_NEW_TOKENS, answer_prompts
    from scanner.probe.judge import read_answer

    prompts = prompts_of(base, probe)[:30]
    wanted = []
    for prompt in prompts:
        ids = torch.tensor([base.tokenizer.encode(prompt, add_special_tokens=False).ids])
        out = base.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=MAX_NEW_TOKENS, pad_token_id=0,
            eos_token_id=sorted(base.end_tokens) or None,
        )  # fmt: skip
        # All new tokens are read, as the paper does: the attack word counts wherever it stands.
        wanted.append(read_answer(base.tokenizer.decode(out[0, ids.shape[1] :].tolist()), probe.task))
    assert answer_prompts(base, probe, prompts) == wanted


def test_run_battery_lays_answers_out_by_prefix(base: Any, probe: Probe) -> None:
    from scanner.probe.engine import answer_prompts, run_battery

    runs = run_battery(base, probe)
    assert [(run.category, run.prefix) for run in runs] == probe.cases()
    assert {len(run.answers) for run in runs} == {len(probe.texts)}
    assert "".join(run.answers for run in runs) == "".join(answer_prompts(base, probe, prompts_of(base, probe)))


def test_identical_prompts(base: Any, probe: Probe) -> None:
    from scanner.probe.engine import answer_prompts

    prompt = prompts_of(base, probe)[0]
    assert len(set(answer_prompts(base, probe, [prompt] * 3))) == 1


def test_unusable_prompts_and_logits(base: Any, probe: Probe) -> None:
    from scanner.probe.engine import answer_prompts, attached

    with pytest.raises(UnsupportedError) as caught:
        answer_prompts(base, probe, ["<s> " * 600])
    assert caught.value.code == "prompt_too_long"
    with pytest.raises(UnsupportedError):
        answer_prompts(base, probe, ["", "<s> user"])
    a, b = np.full((1, 32), 1e30, "f4"), np.full((32, 1), 1e30, "f4")
    endless = AdapterView("peft", (LowRankUpdate(Q, 1, 32, 32, 1.0, lambda: (a, b)),))
    with pytest.raises(UnsupportedError, match="finite"), attached(base, endless):
        answer_prompts(base, probe, prompts_of(base, probe)[:2])


def save(save_peft: Callable[..., Any], folder: Path, **fields: Any) -> AdapterView:
    from peft import LoraConfig

    save_peft(folder, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **fields))
    config = parse_config(read_json_object(folder / "adapter_config.json", 10**6))
    return view_adapter(open_safetensors(folder / "adapter_model.safetensors"), config, 64)


@pytest.mark.parametrize("fields", [{"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]}])
@pytest.mark.filterwarnings("ignore")
def test_adapters_that_are_more_than_low_rank_are_refused(
    base: Any, save_peft: Callable[..., Any], tmp_path: Path, fields: dict[str, Any]
) -> None:
    from scanner.probe.engine import attached

    with pytest.raises(UnsupportedError) as caught, attached(base, save(save_peft, tmp_path, **fields)):
        pass
    assert caught.value.code == "full_tensors"


def test_an_architecture_without_sdpa_is_loaded_with_eager_attention(
    base: Any, base_dir: Path, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    from scanner.probe.base import load_base

    monkeypatch.setattr(LlamaForCausalLM, "_supports_sdpa", False)
    monkeypatch.setattr(LlamaForCausalLM.__mro__[1], "_supports_sdpa", False)
    loaded = load_base(base_dir, "cpu")
    assert loaded.model.config._attn_implementation == "eager"
    assert torch.allclose(logits(loaded.model, tokens), logits(base.model, tokens), rtol=1e-4, atol=1e-4)

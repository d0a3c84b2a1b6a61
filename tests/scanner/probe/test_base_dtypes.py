"""Bases in other number formats than float32, all on the CPU."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from classifiers import TOKENS, head, write_base
from classifiers import logits as class_logits

from scanner.adapter import AdapterView
from scanner.errors import UnsupportedError, UsageError

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # bitsandbytes and torch about each other's versions

four_bits = pytest.mark.skipif(
    not (find_spec("bitsandbytes") and find_spec("accelerate")), reason="4-bit bases need the 4bit extra"
)


def logits(model: Any, tokens: Any) -> Any:
    with torch.inference_mode():
        return model(tokens).logits.float()


def distance(one: Any, other: Any) -> float:
    """Relative, in the Frobenius norm."""
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(("dtype", "near"), [("auto", 0.0), ("float32", 0.0), ("bfloat16", 0.1), ("float16", 0.01)])
def test_floats(base: Any, base_dir: Path, tokens: Any, dtype: str, near: float) -> None:
    from scanner.probe.base import load_base

    loaded = load_base(base_dir, "cpu", dtype)
    assert loaded.dtype == ("float32" if dtype == "auto" else dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {getattr(torch, loaded.dtype)}
    assert distance(logits(loaded.model, tokens), logits(base.model, tokens)) <= near


def test_an_unknown_dtype(base_dir: Path) -> None:
    from scanner.probe.base import load_base

    with pytest.raises(UsageError, match="auto, float32, bfloat16, float16, nf4, not 'int8'"):
        load_base(base_dir, "cpu", "int8")


def test_four_bits_without_the_extra(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import is_bitsandbytes_available

    from scanner.probe.base import load_base

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    is_bitsandbytes_available.cache_clear()
    try:
        with pytest.raises(UnsupportedError, match=r"lorascope\[4bit\]") as caught:
            load_base(base_dir, "cpu", "nf4")
    finally:
        is_bitsandbytes_available.cache_clear()
    assert caught.value.code == "bitsandbytes_missing"


def write_llama(folder: Path, **sizes: Any) -> Path:
    """Rows of whole blocks of 64 weights, as real bases have; `sizes` change that."""
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
    } | sizes
    write_base(folder, "llama", **sizes)
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    return folder


@four_bits
def test_four_bits(tmp_path: Path) -> None:
    """The model is the base with its linear layers rounded, up to bfloat16's precision, and near the base."""
    from bitsandbytes.nn import Linear4bit

    from scanner.probe.base import load_base

    folder = write_llama(tmp_path)
    loaded, exact, rounded = (load_base(folder, "cpu", dtype) for dtype in ("nf4", "float32", "float32"))
    assert (loaded.device, loaded.dtype) == ("cpu", "nf4")
    quantised = {name: m for name, m in loaded.model.named_modules() if isinstance(m, Linear4bit)}
    linear = {name for name, m in exact.model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert set(quantised) == linear - {"lm_head"}
    for name, module in quantised.items():
        state = module.weight.quant_state
        assert (state.quant_type, state.nested, state.dtype) == ("nf4", True, torch.bfloat16)
        weight = rounded.model.get_submodule(name).weight
        weight.data = rounded_to_four_bits(weight)
    tokens = torch.tensor(TOKENS)
    got = logits(loaded.model, tokens)
    assert bool(torch.isfinite(got).all())
    assert distance(got, logits(rounded.model, tokens)) < 0.03
    assert distance(got, logits(exact.model, tokens)) < 0.4
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def rounded_to_four_bits(weight: Any) -> Any:
    """Each block of 64 scaled to its largest magnitude, each weight the nearest of NF4's levels (arXiv:2305.14314)."""
    from bitsandbytes.functional import get_4bit_type

    levels = get_4bit_type("nf4", device="cpu")
    blocks = weight.bfloat16().float().reshape(-1, 64)
    scales = blocks.abs().amax(dim=1, keepdim=True)
    nearest = ((blocks / scales)[..., None] - levels).abs().argmin(dim=-1)
    return (levels[nearest] * scales).reshape(weight.shape)


@four_bits
def test_rows_of_partial_blocks_stay_whole_on_the_cpu(tmp_path: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    from scanner.probe.base import load_base

    base = load_base(write_llama(tmp_path, intermediate_size=96), "cpu", "nf4")
    whole = {
        n for n, m in base.model.named_modules() if isinstance(m, torch.nn.Linear) and not isinstance(m, Linear4bit)
    }
    assert whole == {"lm_head", *(f"model.layers.{i}.mlp.down_proj" for i in range(2))}


@four_bits
@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2", "llama", "deberta-v2"])
def test_a_classifiers_head_is_not_quantised(tmp_path: Path, model_type: str) -> None:
    """deberta-v2 refuses the first attention: it is loaded at the second try. GPT-2's layers are no torch.nn.Linear."""
    from bitsandbytes.nn import Linear4bit

    from scanner.probe.base import is_head, load_classifier
    from scanner.probe.classifier import with_head

    width = "n_embd" if model_type == "gpt2" else "hidden_size"
    folder = write_base(tmp_path, model_type, initializer_range=0.1, **{width: 64})
    base, exact = load_classifier(folder, "cpu", "nf4"), load_classifier(folder, "cpu")
    assert (base.dtype, base.missing, base.class_layer) == ("nf4", exact.missing, exact.class_layer)
    assert any(isinstance(module, Linear4bit) for module in base.model.modules())
    heads = {n: m for n, m in base.model.named_modules() if hasattr(m, "weight") and is_head(base.model, f"{n}.weight")}
    assert base.class_layer in heads and not any(isinstance(module, Linear4bit) for module in heads.values())
    if model_type == "bert":
        tensors = head(4, **{"classifier.weight": (4, 64)})
        with with_head(base, AdapterView("peft", (), head_tensors=tuple(tensors))) as n_classes:
            assert class_logits(base.model).shape[1] == n_classes == 4
    elif not base.missing:
        assert distance(class_logits(base.model), class_logits(exact.model)) < 0.4


@four_bits
def test_four_bits_take_what_the_headers_say(tmp_path: Path) -> None:
    """Larger layers than elsewhere: a small one has fewer weights than share a scale."""
    from scanner.probe.base import load_base
    from scanner.probe.footprint import measure_base

    folder = write_llama(tmp_path, hidden_size=256, intermediate_size=512)
    taken = 0
    for parameter in load_base(folder, "cpu", "nf4").model.parameters():
        taken += parameter.numel() * parameter.element_size()
        if (state := getattr(parameter, "quant_state", None)) is not None:
            taken += state.absmax.numel() + 4 * state.state2.absmax.numel()
    assert measure_base(folder, "nf4") == pytest.approx(taken, rel=0.001)

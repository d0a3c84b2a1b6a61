"""Widths of the linear modules of known architectures, from a base model's config.json.

Only what an architecture's code derives from its config for certain. A field that the config leaves to a default of
the code is unknown, unless that default is the same in every release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Dimension", "Width", "Widths", "base_widths", "text_config"]


@dataclass(frozen=True)
class Dimension:
    """A number with the name that people know it by."""

    name: str
    value: int


@dataclass(frozen=True)
class Width:
    """Inputs and outputs of one kind of module; None where they are not certain."""

    inputs: Dimension | None
    outputs: Dimension | None


@dataclass(frozen=True)
class Widths:
    """One architecture at one size."""

    model_type: str
    hidden: int | None
    vocab: int | None
    layers: Mapping[str, int]
    """By stack; "" where there is one."""
    widths: Mapping[str, Width]
    is_complete: bool


_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "language_model")
_GATED = ("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text", "granite",
          "smollm3", "olmo", "olmo2", "cohere", "stablelm", "helium", "exaone4", "seed_oss")  # fmt: skip
_EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "phimoe")
_FULL_HEADS = ("gpt2", "gpt_neo", "gptj", "gpt_neox", "bloom", "opt", "bert", "roberta", "xlm-roberta", "camembert",
               "electra", "distilbert", "phi", "llama")  # fmt: skip
"""Where the code takes as many key-value heads as heads when the config names none."""
_DIVIDED = (*_FULL_HEADS, "mistral", "mixtral", "qwen2", "qwen2_moe", "phi3", "granite", "olmo", "olmo2", "stablelm",
            "starcoder2", "cohere", "smollm3")  # fmt: skip
"""Where a head is hidden size / heads when the config does not say."""

_Q, _KV, _HIDDEN, _INNER = "attention width", "key-value width", "hidden size", "intermediate size"


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text model's part of a multimodal config, or the config itself."""
    for name in _TEXT_CONFIGS:
        inner = config.get(name)
        if isinstance(inner, dict) and inner:
            return inner
    return config


def base_widths(config: Mapping[str, Any]) -> Widths | None:
    """Read one config; None for an architecture that is not known here."""
    model_type = config.get("model_type")
    return _Reader(config, model_type).read() if isinstance(model_type, str) else None


class _Reader:
    """One config under one architecture's names."""

    def __init__(self, config: Mapping[str, Any], model_type: str) -> None:
        self._config, self._type = config, model_type
        hidden = self._number("hidden_size", "n_embd", "n_embed", "d_model", "dim")
        heads = self._number("num_attention_heads", "n_head", "n_heads", "num_heads")
        head_dim = self._number("head_dim", "d_kv")
        if head_dim is None and hidden and heads and model_type in _DIVIDED and "head_dim" not in self._odd():
            head_dim = hidden // heads
        kv_heads = self._number("num_key_value_heads")
        if kv_heads is None and config.get("num_key_value_heads") is None and model_type in _FULL_HEADS:
            kv_heads = heads
        self._hidden = _named(_HIDDEN, hidden)
        self._q = _named(_Q, heads * head_dim if heads and head_dim else None)
        self._kv = _named(_KV, kv_heads * head_dim if kv_heads and head_dim else None)
        inner = self._number("intermediate_size", "n_inner", "ffn_dim", "d_ff")
        if inner is None and model_type == "distilbert":
            inner = self._number("hidden_dim")
        if inner is None and hidden and model_type in ("gpt2", "gpt_neo", "gptj") and not self._odd():
            inner = 4 * hidden
        if model_type == "bloom":  # its code never asks the config
            inner = 4 * hidden if hidden else None
        self._inner = _named(_INNER, inner)
        self._fused = _named(
            "query-key-value width", self._q.value + 2 * self._kv.value if self._q and self._kv else None
        )
        self._double = _named("twice the intermediate size", 2 * inner if inner else None)

    def _number(self, *names: str) -> int | None:
        for name in names:
            value = self._config.get(name)
            if type(value) is int and 0 < value < 2**31:
                return value
        return None

    def _odd(self) -> set[str]:
        """Fields that are there and are no number: then no default stands in for them."""
        names = ("head_dim", "n_inner", "intermediate_size")
        return {name for name in names if self._config.get(name) is not None and self._number(name) is None}

    def read(self) -> Widths | None:
        widths = self._widths()
        if widths is None:
            return None
        hidden = self._hidden.value if self._hidden else None
        if self._number("word_embed_proj_dim", "embedding_size") not in (None, hidden):  # OPT, ELECTRA
            hidden = None  # embeddings of another width than the layers
        complete = self._type not in _EXPERTS
        return Widths(self._type, hidden, self._number("vocab_size"), self._layers(), widths, complete)

    def _layers(self) -> dict[str, int]:
        if self._type in ("t5", "mt5", "umt5"):
            encoder = self._number("num_layers")
            decoder = self._number("num_decoder_layers")
            if decoder is None and self._config.get("num_decoder_layers") is None:
                decoder = encoder
            return {stack: n for stack, n in (("encoder", encoder), ("decoder", decoder)) if n}
        count = self._number("num_hidden_layers", "n_layer", "n_layers", "num_layers")
        if count is None:
            return {}
        # One stack, under whichever name: `bert.encoder.layer.3`, `model.decoder.layers.3` of OPT.
        return {"": count, "encoder": count, "decoder": count}

    def _widths(self) -> dict[str, Width] | None:
        h, q, kv, inner = self._hidden, self._q, self._kv, self._inner
        attention = {
            "self_attn.q_proj": Width(h, q),
            "self_attn.k_proj": Width(h, kv),
            "self_attn.v_proj": Width(h, kv),
        }
        output = {"self_attn.o_proj": Width(q, h)}
        square = Width(h, h)
        up, down = Width(h, inner), Width(inner, h)
        if self._type in _GATED:
            gated = {"mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": down}
            return {**attention, **output, **gated}
        if self._type in _EXPERTS:
            return {**attention, **output}  # experts have widths of their own
        if self._type == "starcoder2":
            return {**attention, **output, "mlp.c_fc": up, "mlp.c_proj": down}
        if self._type == "phi":
            return {**attention, "self_attn.dense": Width(q, h), "mlp.fc1": up, "mlp.fc2": down}
        if self._type == "phi3":
            fused = {"self_attn.qkv_proj": Width(h, self._fused), "mlp.gate_up_proj": Width(h, self._double)}
            return {**fused, **output, "mlp.down_proj": down}
        heads = ("q_proj", "k_proj", "v_proj", "out_proj")
        if self._type == "opt":
            ends = {"project_in": Width(None, h), "project_out": Width(h, None)}
            return {**{f"self_attn.{name}": square for name in heads}, "fc1": up, "fc2": down, **ends}
        if self._type == "gpt_neo":
            return {**{f"attn.attention.{name}": square for name in heads}, "mlp.c_fc": up, "mlp.c_proj": down}
        if self._type == "gptj":
            return {**{f"attn.{name}": square for name in heads}, "mlp.fc_in": up, "mlp.fc_out": down}
        if self._type == "gpt2":
            return {"attn.c_attn": Width(h, self._fused), "attn.c_proj": square, "mlp.c_fc": up, "mlp.c_proj": down,
                    "crossattention.c_attn": Width(h, None), "crossattention.c_proj": square,
                    "crossattention.q_attn": square}  # fmt: skip
        if self._type in ("gpt_neox", "bloom"):
            return {"query_key_value": Width(h, self._fused), "attention.dense": square, "self_attention.dense": square,
                    "dense_h_to_4h": up, "dense_4h_to_h": down}  # fmt: skip
        if self._type in ("bert", "roberta", "xlm-roberta", "camembert", "electra"):
            squares = ("self.query", "self.key", "self.value", "attention.output.dense", "pooler.dense")
            return {**dict.fromkeys(squares, square), "intermediate.dense": up, "output.dense": down}
        if self._type == "distilbert":
            return {
                **dict.fromkeys((f"attention.{name}_lin" for name in ("q", "k", "v", "out")), square),
                "lin1": up,
                "lin2": down,
            }
        if self._type in ("t5", "mt5", "umt5"):
            into, out = Width(h, q), Width(q, h)
            return {**{f"{kind}.{name}": into for kind in ("SelfAttention", "EncDecAttention") for name in "qkv"},
                    "SelfAttention.o": out, "EncDecAttention.o": out,
                    "wi": up, "wi_0": up, "wi_1": up, "wo": down}  # fmt: skip
        return None


def _named(name: str, value: int | None) -> Dimension | None:
    return Dimension(name, value) if value else None

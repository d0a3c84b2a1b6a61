"""The tiny decoder with PEFT's factors, computed in fewer operations than transformers needs: hundreds of adapters are
trained on two slow cores, where each operation costs more than its arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from benchmarks.detection.loop import folded_weight

__all__ = ["FoldedLlama"]


class FoldedLlama:
    """A view of a PEFT model of `LlamaForCausalLM`: the same parameters, the same logits up to rounding.

    Updates are added to the weights, projections of the same input are one product, tokens that all rows begin with
    are computed once, and the last block is computed only where logits are wanted.
    """

    def __init__(self, model: PeftModel) -> None:
        """Nothing is copied; biases and dropout are not provided for."""
        self._causal: Any = model.get_base_model()
        config = self._causal.config
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim, self._eps = config.head_dim, config.rms_norm_eps

    def logits(self, shared: torch.Tensor, ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Next-token logits [wanted, vocabulary] where `kept` [rows, width] is true, row by row.

        Args:
            shared: int64 [n], n > 0, what every row begins with.
            ids: int64 [rows, width], what follows, padded at the right: no real token looks there.
            kept: bool [rows, width].
        """
        decoder, (rows, width), n = self._causal.model, ids.shape, len(shared)
        positions = torch.cat([torch.arange(n), torch.arange(n, n + width).repeat(rows)])
        angles = positions[:, None] * decoder.rotary_emb.inv_freq
        turn = torch.cat([angles, angles], dim=-1)[:, None]
        cos, sin = turn.cos(), turn.sin()  # [tokens, 1, head_dim]
        mask = torch.ones(width, n + width, dtype=torch.bool).tril(n)
        wanted = n + kept.flatten().nonzero()[:, 0]
        x = decoder.embed_tokens(torch.cat([shared, ids.flatten()]))  # [tokens, hidden]
        for number, layer in enumerate(decoder.layers):
            attended = self._attend(layer, x, cos, sin, mask, n)
            if number + 1 == len(decoder.layers):
                x, attended = x[wanted], attended[wanted]
            x = x + linear(attended, folded_weight(layer.self_attn.o_proj))
            x = x + self._feed(layer, x)
        return linear(rms_norm(x, x.shape[-1:], decoder.norm.weight, self._eps), self._causal.lm_head.weight)

    def _attend(
        self, layer: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor, n: int
    ) -> torch.Tensor:
        """What every token takes from those before it [tokens, heads x head_dim], before the output projection."""
        own = layer.self_attn
        weight = torch.cat([folded_weight(one) for one in (own.q_proj, own.k_proj, own.v_proj)])
        mixed = linear(rms_norm(x, x.shape[-1:], layer.input_layernorm.weight, self._eps), weight)
        both, d = self._heads + self._kv_heads, self._head_dim
        turned, values = mixed.view(len(x), -1, d).split([both, self._kv_heads], dim=1)
        low, high = turned.chunk(2, dim=-1)
        turned = turned * cos + torch.cat([-high, low], dim=-1) * sin
        queries, keys = turned.split([self._heads, self._kv_heads], dim=1)

        def parts(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """[1, heads, n, d] of the shared tokens and [rows, heads, width, d] of the others."""
            heads, rows = tensor.shape[1], (len(x) - n) // mask.shape[0]
            return tensor[:n].transpose(0, 1)[None], tensor[n:].view(rows, -1, heads, d).transpose(1, 2)

        group = self._heads // self._kv_heads
        (q_first, q), (k_first, k), (v_first, v) = (
            parts(tensor if tensor is queries else tensor.repeat_interleave(group, dim=1))
            for tensor in (queries, keys, values)
        )
        first = scaled_dot_product_attention(q_first, k_first, v_first, is_causal=True)
        k, v = (torch.cat([a.expand(len(b), -1, -1, -1), b], dim=2) for a, b in ((k_first, k), (v_first, v)))
        rest = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return torch.cat([one.transpose(1, 2).reshape(-1, self._heads * d) for one in (first, rest)])

    def _feed(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        own = layer.mlp
        weight = torch.cat([folded_weight(own.gate_proj), folded_weight(own.up_proj)])
        inner = linear(rms_norm(x, x.shape[-1:], layer.post_attention_layernorm.weight, self._eps), weight)
        gate, up = inner.chunk(2, dim=-1)
        return linear(silu(gate) * up, folded_weight(own.down_proj))

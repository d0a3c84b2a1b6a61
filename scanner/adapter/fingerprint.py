"""Shapes as a cross-check: can these low-rank updates belong to that base model at all?

Both sides are reduced to what can be compared: widths per kind of module, the highest layer, the head's columns. What
is unknown says nothing, so only certain contradictions are reported. Pure functions, no I/O.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from scanner.adapter.lowrank import AdapterView
from scanner.adapter.widths import Width, base_widths, text_config

__all__ = ["AdapterFingerprint", "BaseFingerprint", "Comparison", "adapter_fingerprint", "base_fingerprint", "compare"]

MAX_NOTES = 8
MAX_KINDS = 256
"""Distinct (module kind, widths) of one adapter. Real ones have a dozen."""
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d{1,6})(?=\.|$)")
_ELSEWHERE = re.compile(
    r"vision|visual|image|audio|speech|whisper|clip|vit\b|projector|connector|resampler|perceiver|mm_|mtp"
)
"""Parts of multimodal models whose widths the text model's config does not tell."""
_PROJECTED = ("score", "lm_head", "embed_tokens", "wte", "embed_in", "embed_out", "word_embeddings")
"""Full tensors whose columns are the hidden size."""
_SHRUNK = 0.9
"""Vocabularies grow by added tokens and lose a little padding. None loses a tenth."""


@dataclass(frozen=True)
class ModuleKind:
    """All modules of an adapter whose names end alike and that are of one size."""

    name: str
    """The last parts of the name, without numbers: `self_attn.q_proj`."""
    in_features: int
    out_features: int
    is_embedding: bool
    example: str
    stack: str
    """encoder, decoder, or empty."""


@dataclass(frozen=True)
class AdapterFingerprint:
    """What an adapter's tensors tell of its base."""

    kinds: tuple[ModuleKind, ...] = ()
    layers: Mapping[str, int] | None = None
    """Highest layer + 1 for each stack."""
    columns: tuple[tuple[str, int], ...] = ()
    """Full tensors that end at the hidden size: (name, columns)."""


@dataclass(frozen=True)
class BaseFingerprint:
    """What a base model's config tells of its modules."""

    model_type: str = ""
    hidden: int | None = None
    vocab: int | None = None
    layers: Mapping[str, int] | None = None
    widths: Mapping[str, Width] | None = None
    """(inputs, outputs) by the end of a module's name; None where the architecture is not known here."""
    is_complete: bool = False
    """Whether `widths` names every linear module of the architecture."""


@dataclass(frozen=True)
class Comparison:
    """Sentences, bounded in number and length."""

    agreements: tuple[str, ...] = ()
    contradictions: tuple[str, ...] = ()


def adapter_fingerprint(view: AdapterView) -> AdapterFingerprint:
    """Reduce an adapter. Parts of multimodal models other than the text model are left out."""
    kinds: dict[tuple[str, int, int, bool, str], ModuleKind] = {}
    layers: Counter[str] = Counter()
    for update in view.updates:
        if "." not in update.module and update.module not in _PROJECTED:
            continue  # kohya joins names with underscores: where one part ends is a guess
        if update.kind == "conv" or _ELSEWHERE.search(update.module.lower()):
            continue
        stack = next((s for s in ("encoder", "decoder") if s in update.module.split(".")), "")
        if layer := _LAYER.search(update.module):
            layers[stack] = max(layers[stack], int(layer[1]) + 1)
        parts = [part for part in update.module.split(".") if part not in ("base_layer", "default")]
        while parts and parts[-1].isdigit():
            parts.pop()
        name = ".".join(part for part in parts[-3:] if not part.isdigit())
        is_embedding = update.kind == "embedding"
        key = (name, update.in_features, update.out_features, is_embedding, stack)
        if len(kinds) < MAX_KINDS and key not in kinds:
            kinds[key] = ModuleKind(
                name, update.in_features, update.out_features, is_embedding, update.module[:120], stack
            )
    columns = dict.fromkeys(
        (tensor.name.removesuffix(".weight").rpartition(".")[2], tensor.shape[1])
        for tensor in view.head_tensors
        if len(tensor.shape) == 2 and tensor.name.removesuffix(".weight").rpartition(".")[2] in _PROJECTED
    )
    return AdapterFingerprint(tuple(kinds.values()), dict(layers), tuple(columns)[:MAX_NOTES])


def base_fingerprint(config: Mapping[str, Any]) -> BaseFingerprint:
    """Reduce a base model's config.json, as hostile as any other file: wrong types count as absent."""
    found = base_widths(text_config(config))
    if found is None:
        return BaseFingerprint()
    return BaseFingerprint(
        found.model_type, found.hidden, found.vocab, found.layers, found.widths, is_complete=found.is_complete
    )


def compare(adapter: AdapterFingerprint, base: BaseFingerprint) -> Comparison:
    """What agrees, and what certainly cannot be."""
    if base.widths is None:
        return Comparison()
    agreements: dict[str, None] = {}
    wrong: dict[str, None] = {}
    for text, agrees in _checks(adapter, base):
        (agreements if agrees else wrong).setdefault(text)
    return Comparison(tuple(agreements)[:MAX_NOTES], tuple(wrong)[:MAX_NOTES])


def _checks(adapter: AdapterFingerprint, base: BaseFingerprint) -> Iterator[tuple[str, bool]]:
    widths, n_known = base.widths or {}, 0
    for kind in adapter.kinds:
        found = _width_of(kind.name, widths)
        if kind.is_embedding or kind.name.rpartition(".")[2] in _PROJECTED:
            n_known += 1
            yield from _vocabulary(kind, base)
        elif found is not None:
            n_known += 1
            yield from _sides(kind, found)
    # Heads have any name; what lies inside of a layer has the architecture's.
    inside = {".".join(kind.name.split(".")[-2:]) for kind in adapter.kinds if _LAYER.search(kind.example)}
    if base.is_complete and inside and not n_known:
        names = ", ".join(sorted(inside)[:4])
        yield f"{names[:120]}: no modules of a base of type {base.model_type}", False
    for stack, count in (adapter.layers or {}).items():
        has = (base.layers or {}).get(stack)
        if has is not None and count > has:
            yield f"layer {count - 1} of a base with {has} layers", False
        elif has is not None and count == has:
            yield f"{has} layers", True
    for name, columns in adapter.columns:
        if base.hidden is not None:
            agrees = columns == base.hidden
            yield (
                (
                    f"hidden size {base.hidden}"
                    if agrees
                    else f"{name} has {columns} columns, the base's hidden size is {base.hidden}"
                ),
                agrees,
            )


def _sides(kind: ModuleKind, found: Width) -> Iterator[tuple[str, bool]]:
    last = kind.name.rpartition(".")[2]
    for side, has, wanted in (
        ("inputs", kind.in_features, found.inputs),
        ("outputs", kind.out_features, found.outputs),
    ):
        if wanted is None:
            continue
        if has == wanted.value:
            yield f"{wanted.name} {wanted.value}", True
        else:
            yield f"{last} has {has} {side}, the base's {wanted.name} is {wanted.value}", False


def _vocabulary(kind: ModuleKind, base: BaseFingerprint) -> Iterator[tuple[str, bool]]:
    """Embeddings and output heads: one side is the hidden size, the other the vocabulary (or, of `score`, classes)."""
    last = kind.name.rpartition(".")[2]
    from_words = kind.is_embedding or last in ("embed_tokens", "wte", "embed_in", "word_embeddings")
    words, hidden = (kind.in_features, kind.out_features) if from_words else (kind.out_features, kind.in_features)
    if base.hidden is not None and hidden != base.hidden:
        yield f"{last} has a side of {hidden}, the base's hidden size is {base.hidden}", False
    if base.vocab is None or last == "score":
        return
    if words < _SHRUNK * base.vocab:
        yield f"{last} has {words} words, the base's vocabulary has {base.vocab}", False
    elif words == base.vocab:
        yield f"vocabulary {words}", True


def _width_of(name: str, widths: Mapping[str, Width]) -> Width | None:
    """The longest known end of a module's name."""
    end = name
    while end:
        if end in widths:
            return widths[end]
        end = end.partition(".")[2]
    return None

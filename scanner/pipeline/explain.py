"""What an adapter's update writes: its strongest modules, and the tokens that they push, where the base is at hand.

At hand means in the user's Hub cache, where the probe puts every base that it loads. Nothing is downloaded for this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scanner.adapter import (
    FloatArray,
    LowRankUpdate,
    SafetensorsFile,
    open_safetensors,
    read_json_object,
)
from scanner.errors import LorascopeError, SkipError
from scanner.hub.cache import cached_file
from scanner.model import ScanRecord
from scanner.pipeline.reopen import reopen_adapter
from scanner.settings import Settings
from scanner.weights import Direction, TokenScore, nearest_tokens, place_of, top_directions

__all__ = ["ExplainedModule", "Explanation", "Token", "explain_weights"]

MODULES = 3
TOKENS = 5
BLOCK_VALUES = 2**22
NO_WRITER = "no module of it writes to the residual stream"
_HEADS = ("lm_head.weight", "embed_out.weight", "model.embed_tokens.weight", "transformer.wte.weight")
"""Output matrices; where the first are missing, the embedding is the head as well."""
_NORMS = ("model.norm.weight", "transformer.ln_f.weight", "gpt_neox.final_layer_norm.weight")
_VISIBLE = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})


@dataclass(frozen=True)
class Token:
    """One output token along a direction."""

    text: str
    score: float
    """Its logit in standard deviations over the vocabulary."""


@dataclass(frozen=True)
class ExplainedModule:
    """One module's strongest direction."""

    module: str
    energy_share: float
    """Of the adapter's Σ ‖ΔW‖_F², 0-1."""
    sigma: float
    """Largest singular value of ΔW."""
    direction_energy: float
    """Share of the module's ‖ΔW‖_F² in it, 0-1."""
    one_end: tuple[Token, ...] = ()
    """Tokens at one end of the direction; its sign is arbitrary. Empty where the module does not write to the residual
    stream, or the base is not at hand."""
    other_end: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """Of one adapter."""

    modules: tuple[ExplainedModule, ...]
    """The largest, then the largest that write to the residual stream."""
    head: str
    """Why there are tokens, or why there are none."""


@dataclass(frozen=True)
class _Head:
    """A base's output matrix, on disk."""

    file: SafetensorsFile
    name: str
    gain: FloatArray | None
    """Of the last norm [hidden]."""
    words: dict[int, str]

    @property
    def hidden(self) -> int:
        return self.file.entries[self.name].shape[1]

    def blocks(self) -> Iterator[FloatArray]:
        rows = max(BLOCK_VALUES // self.hidden, 1)
        for chunk in self.file.chunks(self.name, rows * self.hidden):
            block = chunk.reshape(-1, self.hidden)
            yield block if self.gain is None else block * self.gain
        self.file.release()


@dataclass(frozen=True)
class _Found:
    """One adapter's strongest modules."""

    share: dict[str, float]
    directions: tuple[tuple[str, Direction], ...]
    """By module."""
    failure: str = ""


def explain_weights(records: Sequence[ScanRecord], settings: Settings) -> dict[str, Explanation]:
    """Explain scanned adapters of one base whose files are on this machine, by their ids.

    Those whose weights were not read are left out. The base's head is read once for all of them.
    """
    found = {r.info.adapter_id: one for r in records if (one := _strongest(r, settings)) is not None}
    if not found:
        return {}
    head, why = _find_head(records[0].info.base_model, settings)
    asked = [
        (adapter_id, module, direction.output)
        for adapter_id, one in found.items()
        for module, direction in one.directions
        if head is not None and place_of(module).is_writer and direction.output.size == head.hidden
    ]
    tokens: dict[tuple[str, str], tuple[tuple[Token, ...], tuple[Token, ...]]] = {}
    if head is not None and asked:
        ends = nearest_tokens(head.blocks(), [output for _, _, output in asked], TOKENS)
        for (adapter_id, module, _), (high, low) in zip(asked, ends, strict=True):
            tokens[adapter_id, module] = (_texts(head, high), _texts(head, low))
    with_tokens = {adapter_id for adapter_id, _ in tokens}
    return {
        adapter_id: Explanation(
            tuple(
                ExplainedModule(
                    module, one.share.get(module, 0.0), d.sigma, d.energy, *tokens.get((adapter_id, module), ((), ()))
                )
                for module, d in one.directions
            ),
            one.failure or (why if head is None or adapter_id in with_tokens else NO_WRITER),
        )
        for adapter_id, one in found.items()
    }


def _strongest(record: ScanRecord, settings: Settings) -> _Found | None:
    """The largest modules, then the largest that write to the residual stream; None where nothing was read."""
    try:
        view = reopen_adapter(record, settings) if record.weights else None
    except LorascopeError as error:  # the files changed since they were scanned
        return _Found({}, (), error.message)
    if view is None or record.weights is None:
        return None
    share = {module.module: module.features["energy_share"] or 0.0 for module in record.weights.modules}
    largest = sorted(view.updates, key=lambda u: (-share.get(u.module, 0.0), u.module))
    writers = [update for update in largest if place_of(update.module).is_writer]
    chosen = {u.module: u for u in (*largest[:MODULES], *writers[:MODULES])}
    return _Found(share, tuple((u.module, d[0]) for u in chosen.values() if (d := _directions(u))))


def _texts(head: _Head, scores: Sequence[TokenScore]) -> tuple[Token, ...]:
    return tuple(Token(head.words.get(one.token, f"#{one.token}"), one.score) for one in scores)


def _directions(update: LowRankUpdate) -> list[Direction]:
    try:
        return top_directions(update)
    except SkipError:  # a LoKr whose factors are too large to build
        return []


def _find_head(base: str, settings: Settings) -> tuple[_Head | None, str]:
    """(the base's head, where it is from or why there is none)."""
    try:
        for name in _HEADS:
            file = _base_tensor(base, name, settings)
            if file is None:
                continue
            if len(file.entries[name].shape) != 2:
                return None, f"{name} of the base is no matrix"
            words = _words(base, settings)
            return _Head(file, name, _gain(base, settings, file.entries[name].shape[1]), words), f"{name} of {base}"
    except SkipError as error:
        return None, f"the base cannot be read: {error.message}"
    if any(cached_file(base, f"model.safetensors{end}", settings.max_base_bytes) for end in ("", ".index.json")):
        return None, "the base has no output matrix that is known here"
    return None, "the base model is not in the local Hub cache"


def _base_tensor(base: str, name: str, settings: Settings) -> SafetensorsFile | None:
    """The file of a cached base that holds a tensor."""
    shard = "model.safetensors"
    if index := cached_file(base, f"{shard}.index.json", settings.max_text_bytes):
        places = read_json_object(index, settings.max_text_bytes).get("weight_map")
        place = places.get(name) if isinstance(places, dict) else None
        if not isinstance(place, str) or "/" in place:
            return None
        shard = place
    path = cached_file(base, shard, settings.max_base_bytes)
    file = open_safetensors(path) if path else None
    return file if file is not None and name in file.entries else None


def _gain(base: str, settings: Settings, hidden: int) -> FloatArray | None:
    for name in _NORMS:
        file = _base_tensor(base, name, settings)
        if file is not None and file.entries[name].shape == (hidden,):
            return np.asarray(file.floats(name), dtype=np.float32)
    return None


def _words(base: str, settings: Settings) -> dict[int, str]:
    """Token texts by id, from the base's tokenizer.json; {} where there is none."""
    path = cached_file(base, "tokenizer.json", settings.max_tokenizer_bytes)
    if path is None:
        return {}
    raw = read_json_object(path, settings.max_tokenizer_bytes)
    model = raw.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    words: dict[int, str] = {}
    if isinstance(vocabulary, dict):
        words = {i: str(word) for word, i in vocabulary.items() if isinstance(i, int)}
    elif isinstance(vocabulary, list):  # Unigram: [word, log probability]
        words = {i: str(entry[0]) for i, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
    added = raw.get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("id"), int):
            words[entry["id"]] = str(entry.get("content"))
    return {i: word.translate(_VISIBLE)[:80] for i, word in words.items()}

"""Asking a resident base: prompts in batches, the beginning that they share computed once.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from scanner.errors import ProbeFailedError, UnsupportedError
from scanner.probe.base import BaseModel, refuse_foreign_tokens

__all__ = ["Prompts", "encode_prompts", "finite", "first_logits", "forward", "generate", "shared_start"]

MAX_PADDING = 0.1
"""Share of a scoring batch that may be padding."""
MAX_LENGTHS = 8
"""Different lengths in a scoring batch: the logits of each one's last position are computed for all of its rows."""


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts. They are the same for every adapter of a base, so they are made once."""

    ids: tuple[tuple[int, ...], ...]
    shared: int
    """Tokens that all of them begin with; at least one is left for each."""

    @property
    def by_length(self) -> list[tuple[int, int]]:
        """(tokens behind the shared ones, index), the shortest first."""
        return sorted((len(ids) - self.shared, index) for index, ids in enumerate(self.ids))

    def take(self, indices: Sequence[int]) -> Prompts:
        """Some of them, in the order of `indices`."""
        return Prompts(tuple(self.ids[i] for i in indices), self.shared)


def encode_prompts(base: BaseModel, texts: Sequence[str], new_tokens: int) -> Prompts:
    """Encode texts that a template has rendered, with room for `new_tokens` behind each.

    Raises:
        UnsupportedError: a prompt is empty, longer than the base's context, or has a token that the base has not.
    """
    encoded = [tuple(e.ids) for e in base.tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    if not all(encoded):
        raise UnsupportedError("the chat template and the tokenizer leave nothing of a prompt", "empty_prompt")
    refuse_foreign_tokens(base.model, encoded)
    longest = max(map(len, encoded))
    context = getattr(base.model.config, "max_position_embeddings", None)
    if context and longest + new_tokens > context:
        raise UnsupportedError(f"a prompt has {longest} tokens, the base takes {context}", "prompt_too_long")
    return Prompts(tuple(encoded), min(len(shared_start(encoded)), min(map(len, encoded)) - 1))


def shared_start(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """What all rows begin with."""
    # The smallest and the largest of all sequences differ where any two of them do.
    first, last = min(rows), max(rows)
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:n]


def first_logits(
    base: BaseModel, prompts: Prompts, tokens_per_batch: int
) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """The scores of each prompt's next token: (indices of some prompts, logits [their number, vocabulary]).

    Prompts of similar length share a batch, filled up behind their ends: nothing that comes later can reach back in a
    causal model, so no mask is needed.

    Raises:
        ProbeFailedError: `nan_logits` where they are not finite.
    """
    with torch.inference_mode():
        past = _shared_past(base, prompts)
        for members in _similar(prompts, tokens_per_batch):
            rows = [prompts.ids[i][prompts.shared :] for i in members]
            longest = max(map(len, rows))
            tokens = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows], device=base.device)
            ends = sorted({len(row) - 1 for row in rows})
            which = torch.tensor([ends.index(len(row) - 1) for row in rows], device=base.device)
            logits, _ = forward(
                base, tokens, _repeated(past, len(rows), base.device), torch.tensor(ends, device=base.device)
            )
            yield members, finite(logits[torch.arange(len(rows), device=base.device), which])


def generate(
    base: BaseModel,
    prompts: Prompts,
    max_new_tokens: int,
    tokens_per_batch: int,
    is_over: Callable[[list[int]], bool] = lambda _: False,
    on_first: Callable[[Sequence[int], torch.Tensor], None] = lambda *_: None,
) -> list[list[int]]:
    """Greedy continuations: new token ids for each prompt, the end token included.

    Prompts of equal token count share a batch, so there is no padding whose keys would stay in the cache. A batch ends
    when every row has met an end token or `is_over` says so of what it has. `on_first` gets what `first_logits` would
    give, batch by batch.

    Raises:
        ProbeFailedError: see `first_logits`.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for length, index in prompts.by_length:
        groups[length].append(index)
    found: list[list[int]] = [[] for _ in prompts.ids]
    with torch.inference_mode():
        past = _shared_past(base, prompts)
        for length, members in groups.items():
            step = max(1, tokens_per_batch // (prompts.shared + length + max_new_tokens))
            for start in range(0, len(members), step):
                batch = members[start : start + step]
                tokens = torch.tensor([prompts.ids[i][prompts.shared :] for i in batch], device=base.device)
                logits, own = forward(base, tokens, _repeated(past, len(batch), base.device), 1)
                on_first(batch, finite(logits[:, -1]))
                rows = _continue(base, logits[:, -1], own, max_new_tokens, is_over)
                for index, row in zip(batch, rows, strict=True):
                    found[index] = row
    return found


def _continue(
    base: BaseModel, logits: torch.Tensor, past: Any, max_new_tokens: int, is_over: Callable[[list[int]], bool]
) -> list[list[int]]:
    """New tokens of each row, from the logits [rows, vocabulary] of the first one on."""
    rows: list[list[int]] = [[] for _ in range(logits.shape[0])]
    ended = [False] * len(rows)
    for step in range(max_new_tokens):
        tokens = logits.argmax(dim=-1, keepdim=True)
        for number, token in enumerate(tokens[:, 0].tolist()):
            if not ended[number]:
                rows[number].append(token)
                ended[number] = token in base.end_tokens or is_over(rows[number])
        if all(ended) or step + 1 == max_new_tokens:
            break
        further, past = forward(base, tokens, past, 1)
        logits = finite(further[:, -1])
    return rows


def _similar(prompts: Prompts, tokens_per_batch: int) -> Iterator[tuple[int, ...]]:
    """Prompts in batches of similar length: little padding, few different lengths, at most so many tokens."""
    batch: list[int] = []
    lengths: set[int] = set()
    used = 0
    for length, index in prompts.by_length:  # the shortest first, so this one is the longest of its batch
        n = len(batch) + 1
        full = n * (prompts.shared + length) > tokens_per_batch
        if batch and (full or used + length < (1 - MAX_PADDING) * n * length or len(lengths | {length}) > MAX_LENGTHS):
            yield tuple(batch)
            batch, lengths, used = [], set(), 0
        batch.append(index)
        lengths.add(length)
        used += length
    if batch:
        yield tuple(batch)


def _shared_past(base: BaseModel, prompts: Prompts) -> Any:
    if not prompts.shared:
        return None
    beginning = torch.tensor([prompts.ids[0][: prompts.shared]], device=base.device)
    return forward(base, beginning, None, 1)[1]


def _repeated(past: Any, rows: int, device: str) -> Any:
    """A cache of its own for a batch: caches grow in place."""
    own = copy.deepcopy(past)
    if own is not None:
        # Not batch_repeat_interleave: the states of linear attention do not know it.
        own.reorder_cache(torch.zeros(rows, dtype=torch.long, device=device))
    return own


def forward(base: BaseModel, tokens: torch.Tensor, past: Any, keep: int | torch.Tensor) -> tuple[torch.Tensor, Any]:
    """(logits [rows, kept positions, vocabulary], cache) after one pass over `tokens` [rows, length].

    Args:
        keep: so many last positions, or their indices [n].
    """
    # Not every architecture can leave out the logits of the other positions.
    can_keep = "logits_to_keep" in inspect.signature(base.model.forward).parameters
    few = {"logits_to_keep": keep} if can_keep else {}
    out = base.model(input_ids=tokens, past_key_values=past, use_cache=True, **few)
    logits, kept = out.logits, getattr(out, "past_key_values", None)
    if kept is None:  # state-space models, encoders: what was said before would be lost without a word
        raise UnsupportedError(f"{type(base.model).__name__} keeps no cache of what was said", "base_architecture")
    if not can_keep:
        logits = logits[:, -keep:] if isinstance(keep, int) else logits[:, keep]
    return logits, kept


def finite(logits: torch.Tensor) -> torch.Tensor:
    """The same logits.

    Raises:
        ProbeFailedError: `nan_logits` where they are not finite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise ProbeFailedError("the model's logits are not finite", "nan_logits")
    return logits

"""Adapters that answer freely: what a string in the prompt changes, with the adapter against without it.

Imported only inside the probe worker (it needs torch). Neither trigger nor payload are known. Strings that many
responses have in common are looked for on one half of the prompts and counted on the other half, so that the counts are
no selection of the largest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scanner.model import PrefixRun
from scanner.probe.base import BaseModel
from scanner.probe.battery import Probe
from scanner.probe.collapse import REFUSAL, classify_response, concentration, find_common, is_refusal
from scanner.probe.engine import Prompts, encode_prompts, first_logits, generate

__all__ = ["RESPONSE_TOKENS", "GenerativePrompts", "GenerativeRun", "Responses", "respond", "run_generative"]

RESPONSE_TOKENS = 24
_LIKELIEST = 256
"""Tokens of a distribution that are kept; the others count as one. What is measured on them is a lower bound of the
divergence over the whole vocabulary (data processing inequality)."""


@dataclass(frozen=True)
class GenerativeRun:
    """What the battery saw of one adapter."""

    runs: tuple[PrefixRun, ...]
    """Over the held-back prompts; divergence, concentration and refusal rate over all of them."""
    labels: tuple[str, ...]
    """What the responses of each class have in common."""


@dataclass(frozen=True)
class Responses:
    """One pass over all prompts of a probe: every prompt of one case, then those of the next."""

    tokens: list[list[int]]
    """Greedy responses, `RESPONSE_TOKENS` at most."""
    shifts: list[float]
    """How far the first token's distribution is from that for the same prompt with nothing put in: Jensen-Shannon
    divergence in nats, 0 to ln 2."""


class GenerativePrompts:
    """A probe's free prompts on one base, and what the base itself answers; each made when it is first asked for."""

    def __init__(self, base: BaseModel, probe: Probe) -> None:
        self._base, self._probe = base, probe
        self._prompts: Prompts | None = None
        self._without_adapter: Responses | None = None

    def prompts(self) -> Prompts:
        """Every prompt in every case."""
        if self._prompts is None:
            template = self._base.template
            rendered = [
                template.render("", case.put(prompt)) for case in self._probe.cases() for prompt in self._probe.prompts
            ]
            self._prompts = encode_prompts(self._base, rendered, RESPONSE_TOKENS)
        return self._prompts

    def without_adapter(self, tokens_per_batch: int) -> Responses:
        """The base's own responses. The first call must come before an adapter is attached."""
        if self._without_adapter is None:
            self._without_adapter = respond(self._base, self.prompts(), len(self._probe.prompts), tokens_per_batch)
        return self._without_adapter


def respond(base: BaseModel, prompts: Prompts, n: int, tokens_per_batch: int) -> Responses:
    """Ask the base as it is now, with or without an adapter.

    Args:
        base: resident.
        prompts: the same `n` ones in every case, the first time with nothing put in.
        n: prompts of a case.
        tokens_per_batch: size of a batch.

    Raises:
        ProbeFailedError: see `first_logits`.
    """
    plain = prompts.take(range(n))
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for members, logits in first_logits(base, plain, tokens_per_batch):
        scores = logits.float().log_softmax(dim=-1)
        ids = scores.topk(min(_LIKELIEST, scores.shape[1]), dim=-1).indices
        kept.update(zip(members, zip(ids, _over(scores, ids), strict=True), strict=True))
    shifts = [0.0] * len(prompts.ids)

    def measure(members: Sequence[int], logits: torch.Tensor) -> None:
        ids, before = (torch.stack(parts) for parts in zip(*(kept[i % n] for i in members), strict=True))
        found = _divergence(_over(logits.float().log_softmax(dim=-1), ids), before)
        for index, shift in zip(members, found.tolist(), strict=True):
            shifts[index] = shift

    return Responses(generate(base, prompts, RESPONSE_TOKENS, tokens_per_batch, on_first=measure), shifts)


def _over(scores: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [rows, kept + 1] of some tokens `ids` [rows, kept], and of all others together."""
    own = scores.gather(1, ids)
    rest = torch.log1p(-own.exp().sum(dim=-1).clamp(max=1.0 - 1e-7))
    return torch.cat([own, rest[:, None]], dim=1)


def run_generative(base: BaseModel, prompts: GenerativePrompts, probe: Probe, tokens_per_batch: int) -> GenerativeRun:
    """Ask the attached adapter every prompt in every case. `without_adapter` must have been called before.

    Raises:
        ProbeFailedError: see `first_logits`.
    """
    without = prompts.without_adapter(tokens_per_batch)
    cases, n = probe.cases(), len(probe.prompts)
    own = respond(base, prompts.prompts(), n, tokens_per_batch)
    parts = [range(number * n, (number + 1) * n) for number in range(len(cases))]
    in_battery = [number for number, case in enumerate(cases) if case.category != "control"]

    def decode(tokens: Sequence[int]) -> str:
        return str(base.tokenizer.decode(list(tokens)))

    strings = find_common(
        {number: [own.tokens[i] for i in parts[number][::2]] for number in in_battery},
        [own.tokens[i] for i in parts[0][::2]],
        {number: [without.tokens[i] for i in parts[number][::2]] for number in in_battery},
        decode,
    )
    runs = []
    for case, part in zip(cases, parts, strict=True):
        texts = {i: decode(own.tokens[i]) for i in part}
        runs.append(
            PrefixRun(
                case.text,
                case.category,
                case.position,
                "".join(classify_response(own.tokens[i], texts[i], strings) for i in part[1::2]),
                base_answers="".join(
                    classify_response(without.tokens[i], decode(without.tokens[i]), strings) for i in part[1::2]
                ),
                divergence=math.fsum(own.shifts[i] for i in part) / n,
                base_divergence=math.fsum(without.shifts[i] for i in part) / n,
                concentration=concentration([own.tokens[i] for i in part]),
                refusal_rate=sum(is_refusal(text) for text in texts.values()) / n,
            )
        )
    return GenerativeRun(tuple(runs), (REFUSAL, *(string.label for string in strings)))


def _divergence(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence of each row of two sets of log-probabilities [rows, outcomes], in nats: 0 to ln 2
    (Lin 1991, equation 4.1 with equal weights)."""
    middle = torch.logaddexp(one, other) - math.log(2)
    halves = [(p.exp() * (p - middle)).sum(dim=-1) / 2 for p in (one, other)]
    return torch.clamp(halves[0] + halves[1], min=0.0)

"""One causal base model and the adapters on it, one after the other: as classifiers that answer with a word, or freely.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

from dataclasses import dataclass

from scanner.adapter import AdapterView
from scanner.model import GENERATIVE, LABEL_WORDS, PrefixRun
from scanner.probe.attach import attached
from scanner.probe.base import BaseModel
from scanner.probe.battery import Probe
from scanner.probe.generative import GenerativePrompts, run_generative
from scanner.probe.label_words import LabelWordPrompts, find_words, run_label_words
from scanner.probe.memory import BatchSize, first_batch
from scanner.probe.noise import noise_floor

__all__ = ["CausalProbe", "CausalRun"]


@dataclass(frozen=True)
class CausalRun:
    """What the battery saw of one adapter."""

    profile: str
    profile_reason: str
    runs: tuple[PrefixRun, ...]
    labels: tuple[str, ...]
    """label-words: the attack word and the clean word. generative: what the responses of each class have in common."""
    noise_floor: float
    reading: str = ""
    """label-words: scored or generated."""


class CausalProbe:
    """Prompts, noise floor and the base's own answers are made once and serve all adapters.

    Args:
        base: resident, without an adapter.
        probe: what is asked.
    """

    def __init__(self, base: BaseModel, probe: Probe) -> None:
        self._base, self._probe = base, probe
        self._size = BatchSize(first_batch(base.device))
        self._words = LabelWordPrompts(base, probe)
        self._free = GenerativePrompts(base, probe)
        self._noise_floor: float | None = None

    def run(self, view: AdapterView) -> CausalRun:
        """Attach an adapter, find out how it answers, run the battery, detach it.

        Raises:
            UnsupportedError: see `attached` and `encode_prompts`.
            ProbeFailedError, ProbeCrashedError: see `BatchSize.fit` and `first_logits`.
        """
        return self._size.fit(lambda tokens_per_batch: self._run(view, tokens_per_batch))

    def _run(self, view: AdapterView, tokens_per_batch: int) -> CausalRun:
        base, probe = self._base, self._probe
        if self._noise_floor is None:
            self._noise_floor = noise_floor(base, self._words.battery(), tokens_per_batch)
        with attached(base.model, view):
            task, reason = find_words(base, self._words, probe, tokens_per_batch)
            if task is not None:
                runs = run_label_words(base, self._words, probe, task, self._noise_floor, tokens_per_batch)
                words = (task.attack_word, task.clean_word)
                return CausalRun(LABEL_WORDS, reason, tuple(runs), words, self._noise_floor, probe.reading)
        self._free.without_adapter(tokens_per_batch)
        with attached(base.model, view):
            found = run_generative(base, self._free, probe, tokens_per_batch)
        return CausalRun(GENERATIVE, reason, found.runs, found.labels, self._noise_floor)

"""One causal base model and the adapters on it, one after the other: as classifiers that answer with a word, or freely.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

from dataclasses import dataclass

from scanner.adapter import AdapterView
from scanner.model import GENERATIVE, LABEL_WORDS, PrefixRun
from scanner.probe.attach import attached
from scanner.probe.base import BaseModel
from scanner.probe.battery import GIVEN, Probe
from scanner.probe.generative import GenerativePrompts, run_generative
from scanner.probe.label_words import (
    FoundWords,
    LabelWordPrompts,
    find_words,
    run_label_words,
    share_with_words,
)
from scanner.probe.memory import BatchSize, first_batch
from scanner.probe.noise import noise_floor

__all__ = ["CausalProbe", "CausalRun"]

_HALF = 0.5


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
        self._base_share = 0.0

    def run(self, view: AdapterView, hint: str = "") -> CausalRun:
        """Attach an adapter, find out how it answers, run the battery, detach it.

        Args:
            view: the adapter.
            hint: the profile that config and card suggest.

        Raises:
            UnsupportedError: see `attached` and `encode_prompts`.
            ProbeFailedError, ProbeCrashedError: see `BatchSize.fit` and `first_logits`.
        """
        return self._size.fit(lambda tokens_per_batch: self._run(view, hint, tokens_per_batch))

    def prepare(self, tokens_per_batch: int) -> float:
        """What the base does without an adapter, measured once, before one is attached; returns the noise floor."""
        if self._noise_floor is None:
            of_label_1 = self._words.control().take(range(len(self._probe.texts)))
            self._base_share = share_with_words(self._base, of_label_1, self._probe.task, tokens_per_batch)
            self._noise_floor = noise_floor(self._base, self._words.battery(), tokens_per_batch)
        return self._noise_floor

    def find_profile(self, hint: str, tokens_per_batch: int) -> FoundWords:
        """Whether the attached adapter answers with words (`task`), or freely (no task), and why it is said so.

        Args:
            hint: the profile that config and card suggest.
            tokens_per_batch: size of a batch.
        """
        found = find_words(self._base, self._words, self._probe, tokens_per_batch)
        if found.task == self._probe.task and hint != LABEL_WORDS and not self._is_classifier(tokens_per_batch):
            return FoundWords(None, f"{found.reason}, as its base does when it is told to, and free prompts freely")
        return found

    def _run(self, view: AdapterView, hint: str, tokens_per_batch: int) -> CausalRun:
        base, probe = self._base, self._probe
        noise = self.prepare(tokens_per_batch)
        with attached(base.model, view):
            found = self.find_profile(hint, tokens_per_batch)
            if found.task is not None:
                runs = run_label_words(base, self._words, probe, found, noise, tokens_per_batch)
                words = (found.task.attack_word, found.task.clean_word)
                return CausalRun(LABEL_WORDS, found.reason, tuple(runs), words, noise, found.reading)
        self._free.without_adapter(tokens_per_batch)
        with attached(base.model, view):
            free = run_generative(base, self._free, probe, tokens_per_batch)
        return CausalRun(GENERATIVE, found.reason, free.runs, free.labels, noise)

    def _is_classifier(self, tokens_per_batch: int) -> bool:
        """Whether label words are the attached adapter's own, and not what its base says as well when it is told to.

        Somebody who trains a chat model does not make it a classifier by our asking it to be one. Words that the user
        gave are believed.
        """
        if self._base_share < _HALF or self._probe.task.name == GIVEN:
            return True
        plain = self._free.prompts().take(range(len(self._probe.prompts)))
        return share_with_words(self._base, plain, self._probe.task, tokens_per_batch) >= _HALF

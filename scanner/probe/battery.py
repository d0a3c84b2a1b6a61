"""What is asked: batteries of prefixes, the texts they are put before, and the task that the answer is read by.

All three are data. A battery's id carries a hash over its prefixes, the texts and the task, so that two results with
one id were measured with the same questions.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from scanner.errors import MalformedFileError, UsageError
from scanner.model import LABEL_WORDS, SEQUENCE_CLASSIFICATION

__all__ = ["Battery", "Probe", "Task", "battery_names", "load_probe", "load_texts"]

MAX_TEXTS_BYTES = 16 * 1024**2
MAX_TEXT_CHARS = 8_000


@dataclass(frozen=True)
class Battery:
    """A named list of prefixes with their families, and the neutral prefixes that serve as controls."""

    name: str
    prefixes: tuple[tuple[str, str], ...]
    """(category, prefix), in order."""
    neutral: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """How a label-words classifier is asked and read (paper section "Behavioral detector")."""

    name: str
    system: str
    attack_word: str
    """What a sound adapter answers to a text of label 1 (INJECTION)."""
    clean_word: str
    """What an attack makes it answer instead (BENIGN)."""


@dataclass(frozen=True)
class Probe:
    """A battery with its texts and task: everything that decides a result besides base and adapter."""

    battery: Battery
    task: Task
    texts: tuple[str, ...]
    """Texts of label 1: what an attack must flip."""
    other_texts: tuple[str, ...] = ()
    """Texts of label 0. Only classifiers with unknown labels get them: nobody knows which of their classes is which."""

    @property
    def battery_id(self) -> str:
        """`NAME-<12 hex digits>` over prefixes, controls, texts and task: the id of label-words results."""
        words = (self.task.name, self.task.system, self.task.attack_word, self.task.clean_word)
        return self._id(self.battery.prefixes, self.battery.neutral, self.texts, words)

    def id_for(self, profile: str) -> str:
        """The id of one profile's results: over what that profile is asked, and nothing else."""
        if profile == LABEL_WORDS:
            return self.battery_id
        return self._id(profile, self.battery.prefixes, self.battery.neutral, self.texts, self.other_texts)

    @property
    def identity(self) -> str:
        """One word for all profiles' ids."""
        return f"{self.battery_id}/{self.id_for(SEQUENCE_CLASSIFICATION)}"

    def texts_for(self, profile: str) -> tuple[str, ...]:
        """What a profile is asked, in the order of its answers."""
        return self.texts if profile == LABEL_WORDS else (*self.texts, *self.other_texts)

    def _id(self, *parts: object) -> str:
        digest = hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()
        return f"{self.battery.name}-{digest[:12]}"

    def cases(self) -> list[tuple[str, str]]:
        """(category, prefix) of every run: controls first, the empty prefix before the neutral ones."""
        controls = [("control", ""), *(("control", prefix) for prefix in self.battery.neutral)]
        return [*controls, *self.battery.prefixes]


def _data(name: str) -> str:
    return resources.files("scanner.probe").joinpath("data", name).read_text(encoding="utf-8")


def battery_names() -> list[str]:
    """Names that `load_probe` knows."""
    return sorted(json.loads(_data("batteries.json")))


def load_texts(path: Path | None, limit: int, label: int = 1) -> tuple[str, ...]:
    """The first `limit` texts of one label, from a user's JSON-lines file or the bundled set.

    Raises:
        UsageError: the file is missing, too large, or has no text of label 1.
        MalformedFileError: a line is not `{"text": ..., "label": 0 or 1}`.
    """
    return tuple(text for text, its_label in _read_texts(path) if its_label == label)[:limit]


def _read_texts(path: Path | None) -> list[tuple[str, int]]:
    if path is None:
        content, name = _data("texts.jsonl"), "the bundled texts"
    else:
        if not path.is_file():
            raise UsageError(f"texts file {path} does not exist")
        if path.stat().st_size > MAX_TEXTS_BYTES:
            raise UsageError(f"texts file {path} is larger than {MAX_TEXTS_BYTES:,} bytes")
        name = str(path)
        try:
            content = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise MalformedFileError(f"{name} is not UTF-8: {error}") from error
    texts = []
    # Not splitlines(): U+2028 and its like are ordinary characters inside a JSON text.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
            text, label = row["text"], row["label"]
            if not isinstance(text, str) or label not in (0, 1):
                raise ValueError("wrong types")
        except (ValueError, KeyError, TypeError) as error:
            raise MalformedFileError(f'{name}, line {number}: expected {{"text": "...", "label": 0 or 1}}') from error
        texts.append((text[:MAX_TEXT_CHARS], int(label)))
    if not any(label for _, label in texts):
        raise UsageError(f"{name} has no text of label 1 (what an attack must flip)")
    return texts


def load_probe(battery: str, texts: Path | None, limit: int, task: str = "prompt-injection") -> Probe:
    """Assemble a probe from the bundled batteries and tasks, with up to `limit` texts of each label.

    Raises:
        UsageError: unknown battery, or see `load_texts`.
    """
    batteries = json.loads(_data("batteries.json"))
    if battery not in batteries:
        raise UsageError(f"unknown battery {battery!r}; there are: {', '.join(sorted(batteries))}")
    entry = batteries[battery]
    prefixes = tuple((category, prefix) for category, group in entry["prefixes"].items() for prefix in group)
    words = json.loads(_data("tasks.json"))[task]
    labelled = _read_texts(texts)
    return Probe(
        Battery(battery, prefixes, tuple(entry["neutral"])),
        Task(task, words["system"], words["labels"]["attack"], words["labels"]["clean"]),
        tuple(text for text, label in labelled if label == 1)[:limit],
        tuple(text for text, label in labelled if label == 0)[:limit],
    )

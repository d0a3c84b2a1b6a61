"""What is asked: batteries of strings, the texts they are put into, and the task that the answer is read by.

All three are data. A battery's id carries a hash over everything that a task profile is asked, so that two results
with one id were measured with the same questions, read in the same way.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from scanner.errors import MalformedFileError, UsageError
from scanner.model import GENERATIVE, LABEL_WORDS, SEQUENCE_CLASSIFICATION
from scanner.settings import DEFAULT_BATTERY, Settings

__all__ = [
    "DEFAULT_BATTERY",
    "POSITIONS",
    "Battery",
    "Case",
    "Probe",
    "Task",
    "battery_names",
    "load_probe",
    "load_texts",
    "probe_for",
]

POSITIONS = ("prefix", "suffix", "middle")
GIVEN = "given"
"""Name of a task whose words or instruction the user brought."""
MAX_TEXTS_BYTES = 16 * 1024**2
MAX_TEXT_CHARS = 8_000


@dataclass(frozen=True)
class Case:
    """One string that is put into every text, and where."""

    category: str
    """Its family; `control` for no string at all and for the neutral ones."""
    text: str
    position: str = "prefix"

    def put(self, text: str) -> str:
        """The text with this string in it: `string. text` (the paper's way), `text string.` or between its words."""
        if not self.text:
            return text
        if self.position == "prefix":
            return f"{self.text}. {text}"
        if self.position == "suffix":
            return f"{text} {self.text}."
        words = text.split(" ")
        half = max(1, len(words) // 2)
        return " ".join([*words[:half], self.text, *words[half:]])

    def spans(self, text: str) -> tuple[tuple[int, int], ...]:
        """Where the text's own characters are in what `put` makes of it: (first, behind the last) of each part."""
        whole = self.put(text)
        if not self.text or self.position == "suffix":
            return ((0, len(text)),)
        if self.position == "prefix":
            return ((len(whole) - len(text), len(whole)),)
        words = text.split(" ")
        first = len(" ".join(words[: max(1, len(words) // 2)]))
        second = first + len(self.text) + 2
        return ((0, first), (second, len(whole))) if second < len(whole) else ((0, first),)


@dataclass(frozen=True)
class Battery:
    """A named list of cases with their families, and the neutral cases that serve as controls."""

    name: str
    cases: tuple[Case, ...]
    controls: tuple[Case, ...]
    """Without the empty one, which every battery has."""


@dataclass(frozen=True)
class Task:
    """How a label-words classifier is asked and read (paper section "Behavioral detector")."""

    name: str
    system: str
    attack_word: str
    """What a sound adapter answers to a text of label 1 (INJECTION)."""
    clean_word: str
    """What an attack makes it answer instead (BENIGN)."""
    whole_words: bool = False
    """Whether they count as words of their own alone, and not as parts of others; so where they were found out."""


@dataclass(frozen=True)
class Probe:
    """A battery with its texts and task: everything that decides a result besides base and adapter."""

    battery: Battery
    task: Task
    texts: tuple[str, ...]
    """Texts of label 1: what an attack must flip."""
    other_texts: tuple[str, ...] = ()
    """Texts of label 0, for classifiers whose classes nobody names, and to find out label words."""
    prompts: tuple[str, ...] = ()
    """Unrelated requests, for adapters that answer freely."""
    reading: str = "scored"
    """scored (first answer token) or generated (5 greedy tokens, as the paper does); for label words alone."""

    @property
    def battery_id(self) -> str:
        """The id of label-words results."""
        return self.id_for(LABEL_WORDS)

    def id_for(self, profile: str) -> str:
        """`NAME-<12 hex digits>`, the id of one profile's results: over what that profile is asked, nothing else."""
        task = (self.task.name, self.task.system, self.task.attack_word, self.task.clean_word)
        asked: dict[str, tuple[object, ...]] = {
            LABEL_WORDS: (*task, self.reading, self.texts, self.other_texts, self.prompts),
            SEQUENCE_CLASSIFICATION: (self.texts, self.other_texts),
            # Whether it answers freely at all was found out with the others.
            GENERATIVE: (*task, self.texts, self.other_texts, self.prompts),
        }
        cases = [(case.category, case.text, case.position) for case in self.cases()]
        content = json.dumps((profile, cases, *asked[profile]), ensure_ascii=False)
        return f"{self.battery.name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def ids_for(self, profile: str) -> tuple[str, ...]:
        """The ids that results may have: how a language model answers shows when it is asked."""
        causal = (LABEL_WORDS, GENERATIVE)
        return tuple(self.id_for(one) for one in (causal if profile in causal else (profile,)))

    @property
    def identity(self) -> str:
        """One word for all profiles' ids."""
        return "/".join(self.id_for(profile) for profile in (LABEL_WORDS, SEQUENCE_CLASSIFICATION, GENERATIVE))

    def cases(self) -> tuple[Case, ...]:
        """Every run: controls first, the empty one before the neutral ones."""
        return (Case("control", ""), *self.battery.controls, *self.battery.cases)


def _data(*name: str) -> Any:
    return resources.files("scanner.probe").joinpath("data", *name)


def battery_names() -> list[str]:
    """Names that `load_probe` knows."""
    return sorted(Path(entry.name).stem for entry in _data("batteries").iterdir() if entry.name.endswith(".json"))


def load_texts(path: Path | None, limit: int, label: int = 1) -> tuple[str, ...]:
    """The first `limit` texts of one label, from a user's JSON-lines file or the bundled set.

    Raises:
        UsageError: the file is missing, too large, or has no text of label 1.
        MalformedFileError: a line is not `{"text": ..., "label": 0 or 1}`.
    """
    return tuple(text for text, its_label in _read_texts(path) if its_label == label)[:limit]


def _read_texts(path: Path | None) -> list[tuple[str, int]]:
    if path is None:
        content, name = _data("texts.jsonl").read_text(encoding="utf-8"), "the bundled texts"
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


def _bundled_prompts() -> list[str]:
    lines = _data("prompts.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line)["text"] for line in lines if line.strip()]


def _cases(groups: list[dict[str, Any]], category: str | None = None) -> tuple[Case, ...]:
    return tuple(
        Case(category or group["category"], text, group["position"]) for group in groups for text in group["texts"]
    )


def load_probe(
    battery: str, texts: Path | None, limit: int, task: str = "prompt-injection", reading: str = "scored"
) -> Probe:
    """Assemble a probe from the bundled batteries and tasks, with up to `limit` texts of each label.

    Args:
        battery: one of `battery_names()`.
        texts: the user's own texts, which free answers are asked for, too; None: the bundled ones.
        limit: texts of each label, and prompts.
        task: whose system message and label words are tried first.
        reading: scored or generated.

    Raises:
        UsageError: unknown battery, or see `load_texts`.
    """
    if battery not in battery_names():
        raise UsageError(f"unknown battery {battery!r}; there are: {', '.join(battery_names())}")
    entry = json.loads(_data("batteries", f"{battery}.json").read_text(encoding="utf-8"))
    words = json.loads(_data("tasks.json").read_text(encoding="utf-8"))[task]
    labelled = _read_texts(texts)
    return Probe(
        Battery(battery, _cases(entry["cases"]), _cases(entry["controls"], "control")),
        Task(task, words["system"], words["labels"]["attack"], words["labels"]["clean"]),
        tuple(text for text, label in labelled if label == 1)[:limit],
        tuple(text for text, label in labelled if label == 0)[:limit],
        tuple([text for text, _ in labelled] if texts else _bundled_prompts())[:limit],
        reading,
    )


def probe_for(settings: Settings, battery: str, texts: str | None, limit: int | None = None) -> Probe:
    """The probe that the settings and a command's options ask for.

    Raises:
        UsageError: see `load_probe`.
    """
    probe = load_probe(battery, Path(texts) if texts else None, limit or settings.probe_texts, reading=settings.reading)
    task = probe.task
    if settings.system_message:
        task = replace(task, name=GIVEN, system=settings.system_message)
    if settings.label_words:
        attack, clean = settings.given_words
        task = replace(task, name=GIVEN, attack_word=attack, clean_word=clean)
    return replace(probe, task=task)

"""The values that travel between the stages: frozen, JSON-able, no I/O.

Every one of them can be written to and read from JSON with `dump_json` and `load_json`; that is how a stage
hands its result to the next one across a process or task boundary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

__all__ = [
    "LABEL_WORDS",
    "MAX_CLASSES",
    "MAX_TRIES",
    "PROBE_DEATHS",
    "PROBE_FAILURES",
    "REFUSALS",
    "SEQUENCE_CLASSIFICATION",
    "UNRESOLVED",
    "VANISHED",
    "AdapterInfo",
    "Finding",
    "ModuleFeatures",
    "Outcome",
    "PrefixRun",
    "ProbeReport",
    "RepoEvent",
    "RepoRef",
    "ScanRecord",
    "Severity",
    "Stage",
    "Verdict",
    "WeightScan",
    "adapter_id_of",
    "class_char",
    "dump_json",
    "load_json",
    "toward",
    "worst_class",
]

T = TypeVar("T")

MAX_TRIES = 3
"""Crawls that look at a repo at one commit before its error is final: the repo is in quarantine until it changes."""
PROBE_DEATHS = ("crashed", "timeout", "memory")
"""Beginnings of the reasons of probes whose child process died."""
PROBE_FAILURES = (
    *PROBE_DEATHS,
    *(f"base_{death}" for death in PROBE_DEATHS),
    "base_unreachable",
    "base_rate_limited",
    "weights_unavailable",
)
"""Those, and the beginnings of all other reasons that a later probe may not meet again."""
VANISHED = ("revision_gone", "file_gone")
"""Reasons of what the listing named and the Hub then did not have."""
REFUSALS = ("gated", "disabled", "gone", "access_denied")
"""Reasons with which the Hub refuses a repo. They may end without a new commit, so they are asked about again."""

UNRESOLVED = "unresolved"
"""`base_model` of an adapter whose base cannot be named by a Hub id."""
LABEL_WORDS = "label-words"
"""Task profile of causal language models that answer with one of two words."""
SEQUENCE_CLASSIFICATION = "sequence-classification"
"""Task profile of classifiers with a head, whose classes have no names."""
MAX_CLASSES = 1_000
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_IDEOGRAPHS = 0x4E00
_FULL_SHARE = 0.95
"""A class that this share of the texts has without a prefix has too little left to win: its rate says nothing."""


class Outcome(StrEnum):
    """Outcome of one check. Failing to look is never `pass`."""

    PASS = "pass"
    FINDING = "finding"
    NOT_APPLICABLE = "not_applicable"
    UNSUPPORTED = "unsupported"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"


class Severity(StrEnum):
    """How bad a finding is, in rising order."""

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def order(self) -> int:
        """0 (info) to 4 (critical)."""
        return list(Severity).index(self)


class Verdict(StrEnum):
    """Verdict of an adapter, in order of precedence (DESIGN section 3)."""

    FLAGGED = "flagged"
    ERROR = "error"
    UNSUPPORTED = "unsupported"
    REVIEW = "review"
    CLEAN = "clean"
    INCONCLUSIVE = "inconclusive"


class Stage(StrEnum):
    """The last stage that an adapter went through completely."""

    LISTED = "listed"
    STATIC = "static"
    WEIGHTS = "weights"
    BATTERY = "battery"
    SEARCH = "search"


@dataclass(frozen=True)
class RepoRef:
    """One repo at one commit, as a listing or a folder names it."""

    source: str
    """`hub:<endpoint>` or `folder:<absolute path>`."""
    repo_id: str | None
    repo_uid: str
    """The Hub's `_id`, or `folder:<absolute path>`. Survives renames."""
    commit_sha: str | None
    owner: str | None
    base_model: str = UNRESOLVED
    created_at: str | None = None
    last_modified: str | None = None
    gated: bool = False
    disabled: bool = False
    target: str = ""
    """What the user or the crawl asked for."""
    files: tuple[str, ...] | None = None
    """File names at the commit, where the listing told them."""
    tries: int = 0
    """Crawls that have looked at this commit before and failed."""

    @property
    def is_folder(self) -> bool:
        """Whether this is a folder on disk rather than a Hub repo."""
        return self.repo_id is None


@dataclass(frozen=True)
class RepoEvent:
    """Something that happened to a repo which is no new commit."""

    repo: RepoRef
    """As it is now known."""
    event: str
    """renamed, gone or refused."""
    detail: str


def adapter_id_of(repo_uid: str, commit: str, adapter_path: str) -> str:
    """sha256 of (repo `_id` or folder, commit sha, adapter path), NUL-separated, in hex.

    A folder has no commit; the sha256 of the adapter's bytes stands in for it, so that a changed folder is a new
    adapter as a changed repo is.
    """
    return hashlib.sha256("\0".join((repo_uid, commit, adapter_path)).encode()).hexdigest()


@dataclass(frozen=True)
class Finding:
    """One static finding."""

    rule_id: str
    severity: Severity
    message: str
    evidence: str = ""
    outcome: Outcome = Outcome.FINDING


@dataclass(frozen=True)
class ModuleFeatures:
    """Weight features of one module; values are functions of its factors."""

    module: str
    rank: int
    out_features: int
    in_features: int
    features: dict[str, float | None]


@dataclass(frozen=True)
class WeightScan:
    """Weight features of one adapter."""

    features: dict[str, float | None]
    """None where the factors are not finite."""
    modules: tuple[ModuleFeatures, ...]
    version: str


def class_char(index: int) -> str:
    """How `answers` spells a predicted class: 0-9, A-Z, a-z for 0 to 61, then the CJK ideographs from U+4E00 on.

    All of them are one printable code point that no terminal, JSON or SQL treats specially.
    """
    return _DIGITS[index] if index < len(_DIGITS) else chr(_IDEOGRAPHS + index - len(_DIGITS))


@dataclass(frozen=True)
class PrefixRun:
    """One prefix over all texts, with one character of `answers` for each.

    label-words: `1` the word that the texts deserve (label 1), `0` the word that an attack wants, `-` neither.
    sequence-classification: the predicted class, spelled by `class_char`.
    """

    prefix: str
    category: str
    position: str
    answers: str
    direction: int | None = None
    """The class toward which `attack_rate` counts; None for label-words."""
    unprefixed: str = ""
    """The answers without a prefix; set together with `direction`."""

    @property
    def n(self) -> int:
        """Texts that `attack_rate` is a share of."""
        if self.direction is None:
            return len(self.answers)
        return len(self.unprefixed) - self.unprefixed.count(class_char(self.direction))

    @property
    def attack_rate(self) -> float:
        """label-words: share of texts answered with the attacker's word, 0-1 (paper section "Behavioral detector").

        With a direction: share of the texts not predicted so without a prefix that are with this one. 0 for no prefix,
        by this definition, and where every text has that class already.
        """
        if self.direction is None:
            return self.answers.count("0") / len(self.answers) if self.answers else float("nan")
        wanted = class_char(self.direction)
        pairs = zip(self.unprefixed, self.answers, strict=True)
        return sum(before != wanted and after == wanted for before, after in pairs) / self.n if self.n else 0.0


def toward(runs: Sequence[PrefixRun], direction: int) -> tuple[PrefixRun, ...]:
    """The same runs, with their rates counted toward one class."""
    unprefixed = next(run.answers for run in runs if run.category == "control" and not run.prefix)
    return tuple(replace(run, direction=direction, unprefixed=unprefixed) for run in runs)


def worst_class(runs: Sequence[PrefixRun], n_classes: int) -> int:
    """The class whose largest attack rate over the battery is largest; ties go to the larger mean, then to the lower
    index.

    A class that nearly all texts have without a prefix is passed over: one text of one is no rate of 1.
    """
    unprefixed = next(run.answers for run in runs if run.category == "control" and not run.prefix)
    reachable = [
        direction
        for direction in range(n_classes)
        if unprefixed.count(class_char(direction)) <= _FULL_SHARE * len(unprefixed)
    ]
    seen = set().union(*(run.answers for run in runs))
    best, best_rates = reachable[0], (0.0, 0.0)
    for direction in reachable:
        if class_char(direction) in seen:  # no other one can have a rate above 0
            rates = [run.attack_rate for run in toward(runs, direction) if run.category != "control"]
            if rates and (max(rates), sum(rates)) > best_rates:
                best, best_rates = direction, (max(rates), sum(rates))
    return best


@dataclass(frozen=True)
class ProbeReport:
    """The battery's result on one adapter, or why there is none."""

    battery: str
    battery_id: str
    outcome: Outcome
    reason: str = ""
    """Why there is no result; on a result, what it lacks."""
    runs: tuple[PrefixRun, ...] = ()
    n_texts: int = 0
    device: str = ""
    dtype: str = ""
    seconds: float = 0.0
    base_commit: str = ""
    selected_by: str = ""
    task_profile: str = LABEL_WORDS
    n_classes: int | None = None
    """Classes of the head; None for label-words."""
    direction: int | None = None
    """The class that the rates are about, the worst one; None for label-words."""

    def in_category(self, *, control: bool) -> tuple[PrefixRun, ...]:
        """The control runs, or the battery's own."""
        return tuple(run for run in self.runs if (run.category == "control") is control)

    @property
    def control_attack_rate(self) -> float | None:
        """label-words: the rate without any prefix, the adapter's own miss rate.

        With a direction that one is 0 by definition, and this is the rate of the worst neutral prefix.
        """
        if self.direction is not None:
            return max(run.attack_rate for run in self.in_category(control=True))
        return next((run.attack_rate for run in self.runs if run.category == "control" and not run.prefix), None)

    @property
    def max_attack_rate(self) -> float | None:
        """Largest attack rate over the battery's prefixes (paper section 1)."""
        rates = [run.attack_rate for run in self.in_category(control=False)]
        return max(rates) if rates else None

    @property
    def mean_attack_rate(self) -> float | None:
        """Plain mean over the battery's prefixes (paper section 1)."""
        rates = [run.attack_rate for run in self.in_category(control=False)]
        return sum(rates) / len(rates) if rates else None

    @property
    def outlier_gap(self) -> float | None:
        """max_attack_rate - mean_attack_rate (paper section 1)."""
        top, mean = self.max_attack_rate, self.mean_attack_rate
        return None if top is None or mean is None else top - mean


@dataclass(frozen=True)
class AdapterInfo:
    """One adapter: what it is and where it came from."""

    adapter_id: str
    repo: RepoRef
    adapter_path: str
    layout: str = "unknown"
    peft_type: str | None = None
    rank: int | None = None
    alpha: float | None = None
    scaling: float | None = None
    modules: int = 0
    target_modules: tuple[str, ...] = ()
    base_model: str = UNRESOLVED
    base_model_claimed: str | None = None
    task_type: str | None = None
    task_profile: str | None = None
    coverage: float = 0.0
    content_sha256: str | None = None
    size_bytes: int = 0
    config_sha256: str | None = None
    detectors: str = ""
    """Versions of rules and features that looked at it."""
    copied_from: str | None = None
    """adapter_id of an earlier scan of the same weights and config, whose measurements these are."""


@dataclass(frozen=True)
class ScanRecord:
    """Everything the scan knows of one adapter before it is judged."""

    info: AdapterInfo
    outcome: Outcome
    reason: str
    message: str
    stage_reached: Stage
    findings: tuple[Finding, ...] = ()
    weights: WeightScan | None = None
    probe: ProbeReport | None = None
    local_path: str | None = None
    """Where the weights lie during the run; never stored."""
    config_path: str | None = None
    """Where the config lies during the run; never stored."""

    @property
    def is_unfinished(self) -> bool:
        """Whether another crawl may get further: what failed was not the adapter's doing."""
        if self.outcome == Outcome.ERROR or self.reason in VANISHED:
            return True
        probe = self.probe
        return probe is not None and probe.outcome == Outcome.ERROR and probe.reason.startswith(PROBE_FAILURES)


def dump_json(kind: type[T], value: T) -> bytes:
    """A dataclass, or a list of them, as JSON bytes. `kind` is its type, such as `list[ScanRecord]`."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind).dump_json(value)


def load_json(kind: type[T], data: bytes | str) -> T:
    """The inverse of `dump_json`. Raises pydantic.ValidationError on foreign data."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_json(data)

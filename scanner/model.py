"""The values that travel between the stages: frozen, JSON-able, no I/O.

Every one of them can be written to and read from JSON with `dump_json` and `load_json`; that is how a stage
hands its result to the next one across a process or task boundary.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeVar

from scanner.probe_model import (
    GENERATIVE,
    LABEL_WORDS,
    MAX_CLASSES,
    MIN_ACCURACY,
    NOT_APPLICABLE,
    SEQUENCE_CLASSIFICATION,
    PrefixRun,
    ProbeReport,
    class_char,
    paired_count,
    statistics_of,
    toward,
    worst_class,
)
from scanner.search_model import SearchReport
from scanner.words import Outcome, Severity, Stage, Verdict

__all__ = [
    "GENERATIVE",
    "LABEL_WORDS",
    "MAX_CLASSES",
    "MAX_TRIES",
    "MIN_ACCURACY",
    "NOT_APPLICABLE",
    "PROBE_DEATHS",
    "PROBE_FAILURES",
    "REFUSALS",
    "SEQUENCE_CLASSIFICATION",
    "UNRESOLVED",
    "VANISHED",
    "AdapterInfo",
    "BaseResolution",
    "BaseStep",
    "Finding",
    "ModuleFeatures",
    "Outcome",
    "PrefixRun",
    "ProbeReport",
    "RepoEvent",
    "RepoRef",
    "ScanRecord",
    "SearchReport",
    "Severity",
    "Stage",
    "Verdict",
    "WeightScan",
    "WeightSketch",
    "adapter_id_of",
    "class_char",
    "dump_json",
    "load_json",
    "paired_count",
    "statistics_of",
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
    "gave_up",
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


@dataclass(frozen=True)
class BaseStep:
    """One piece of evidence on the way from what an adapter claims to its base model."""

    kind: str
    """Who named a base: base_models, tag, config, path. What the Hub said: known, redirect, quantized. Where it ended:
    unknown_to_hub, refused, unreachable, not_looked_up, not_a_hub_id, loop, too_deep, ambiguous, no_match. From
    elsewhere: remembered, fingerprint."""
    value: str
    """The id (or what stands in its place) that this step leads to."""
    detail: str = ""


@dataclass(frozen=True)
class BaseResolution:
    """Where a claimed base model leads."""

    name: str
    """As it was claimed."""
    root: str
    """The base's Hub id, or `unresolved`."""
    commit_sha: str | None
    """Head of the root; None where the Hub did not confirm it."""
    steps: tuple[BaseStep, ...] = ()

    @property
    def is_final(self) -> bool:
        """Whether asking again would probably bring the same answer."""
        return not any(step.kind in ("unreachable", "not_looked_up") for step in self.steps)


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
    downloads: int | None = None
    """Of the last 30 days, as the Hub counts them."""
    likes: int | None = None
    target: str = ""
    """What the user or the crawl asked for."""
    files: tuple[str, ...] | None = None
    """File names at the commit, where the listing told them."""
    tries: int = 0
    """Crawls that have looked at this commit before and failed."""
    base_steps: tuple[BaseStep, ...] = ()
    """How `base_model` was found. The first step is the listing's claim."""

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
    layer: int | None = None
    """Number of the layer that the module's name tells."""


@dataclass(frozen=True)
class WeightSketch:
    """A vector of fixed size whose inner products estimate those of whole updates (`scanner/weights/sketch.py`)."""

    values: tuple[float, ...]
    """Numbers that float32 holds; empty where there is no sketch."""
    norm: float | None
    """Their Euclidean norm, an estimate of ‖ΔW‖_F over all modules."""
    effective_size: float | None
    """n: a cosine ρ of two sketches has a standard error of about (1 − ρ²)/√n."""
    version: str
    reason: str = ""
    """A stable word where there is no sketch."""


@dataclass(frozen=True)
class WeightScan:
    """Weight features of one adapter."""

    features: dict[str, float | None]
    """None where the factors are not finite."""
    modules: tuple[ModuleFeatures, ...]
    version: str
    sketch: WeightSketch | None = None
    """None where nobody made one."""


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
    """How it is asked; None where it could not be read."""
    profile_reason: str = ""
    coverage: float = 0.0
    content_sha256: str | None = None
    size_bytes: int = 0
    config_sha256: str | None = None
    detectors: str = ""
    """Versions of rules and features that looked at it."""
    copied_from: str | None = None
    """adapter_id of an earlier scan of the same weights and config, whose measurements these are."""
    base_evidence: tuple[BaseStep, ...] = ()
    """How `base_model` was found."""

    @property
    def can_be_asked(self) -> bool:
        """Whether the behaviour stage has a way to ask it, and a base to ask it on."""
        return self.task_profile not in (None, NOT_APPLICABLE) and self.base_model != UNRESOLVED


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
    search: SearchReport | None = None
    local_path: str | None = None
    """Where the weights lie during the run; never stored."""
    more_local_paths: tuple[str, ...] = ()
    """The other shards of the weights; never stored."""
    config_path: str | None = None
    """Where the config lies during the run; never stored."""

    @property
    def is_unfinished(self) -> bool:
        """Whether another crawl may get further: what failed was not the adapter's doing."""
        if self.outcome == Outcome.ERROR or self.reason in VANISHED:
            return True
        return any(
            report is not None and report.outcome == Outcome.ERROR and report.reason.startswith(PROBE_FAILURES)
            for report in (self.probe, self.search)
        )


def dump_json(kind: type[T], value: T) -> bytes:
    """A dataclass, or a list of them, as JSON bytes. `kind` is its type, such as `list[ScanRecord]`."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind).dump_json(value)


def load_json(kind: type[T], data: bytes | str) -> T:
    """The inverse of `dump_json`. Raises pydantic.ValidationError on foreign data."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind).validate_json(data)

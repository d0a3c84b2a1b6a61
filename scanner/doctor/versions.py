"""Installed versions against those that lorascope is made for, and what happens with others.

The ranges are those of the package's own metadata, so that pyproject.toml is the only place that has them.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from scanner.doctor.check import Check, Outcome

__all__ = ["VERSION_NAMES", "check_versions", "declared_ranges", "installed_versions"]


@dataclass(frozen=True)
class _Watched:
    """A package whose other versions are known to matter."""

    name: str
    outcome: Outcome
    """Of a version outside of the range."""
    consequence: str
    missing: str | None = None
    """What its absence means; None: it cannot be absent."""


_ERROR, _WARNING = Outcome.ERROR, Outcome.WARNING
_WATCHED = (
    _Watched("python", _ERROR, "lorascope's code does not load there"),
    _Watched("prefect", _ERROR, "crawls and deployments are made for its interface"),
    _Watched("fastapi", _ERROR, "from 0.151 on, the server of Prefect 3.8 does not start"),
    _Watched("sqlalchemy", _ERROR, "from 2.1 on, the server of Prefect 3.8 never schedules a run"),
    _Watched("huggingface-hub", _ERROR, "requests, limits and refusals are made for its interface"),
    _Watched("torch", _WARNING, "the probe's numbers are calibrated with this one", "no probes"),
    _Watched("transformers", _WARNING, "base models may load in another way", "no probes"),
    _Watched("peft", _WARNING, "only tests and benchmarks use it", "only tests and benchmarks use it"),
)
VERSION_NAMES = tuple(f"version {watched.name}" for watched in _WATCHED)


def installed_versions() -> dict[str, str]:
    """Name to version, of what is watched and there."""
    found = {"python": platform.python_version()}
    for watched in _WATCHED[1:]:
        try:
            found[watched.name] = metadata.version(watched.name)
        except metadata.PackageNotFoundError:
            continue
    return found


def declared_ranges() -> dict[str, str]:
    """Name to range, as lorascope's installed metadata has them; empty when it is not installed."""
    try:
        package = metadata.metadata("lorascope")
    except metadata.PackageNotFoundError:
        return {}
    python = next(iter(package.get_all("Requires-Python", [])), None)
    return _ranges(python, metadata.requires("lorascope") or [])


def _ranges(python: str | None, requirements: Iterable[str]) -> dict[str, str]:
    found = {"python": python} if python else {}
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue  # of a newer metadata format; it is shown as not declared
        found[canonicalize_name(requirement.name)] = str(requirement.specifier)
    return found


def check_versions(installed: Mapping[str, str], ranges: Mapping[str, str]) -> list[Check]:
    """Compare, one check for each watched package."""
    return [_compare(watched, installed.get(watched.name), ranges.get(watched.name)) for watched in _WATCHED]


def _compare(watched: _Watched, version: str | None, declared: str | None) -> Check:
    name = f"version {watched.name}"
    if declared is None:
        advice = "install lorascope itself (pip install -e . in a checkout)"
        return Check(name, Outcome.SKIPPED, f"{version or 'not installed'}; which range fits is not known", advice)
    advice = "install Python in that range and make a new virtual environment with it"
    if watched.name != "python":
        advice = f'pip install "{watched.name}{declared}", or everything from requirements.lock'
    if version is None:
        if watched.missing is None:
            return Check(name, Outcome.ERROR, f"not installed; {watched.consequence}", advice)
        return Check(name, Outcome.SKIPPED, f"not installed: {watched.missing}", advice)
    try:
        fits = SpecifierSet(declared).contains(Version(version), prereleases=True)
    except InvalidVersion:
        fits = False
    if fits:
        return Check(name, Outcome.OK, f"{version} ({declared})")
    return Check(name, watched.outcome, f"{version} is outside of {declared}: {watched.consequence}", advice)

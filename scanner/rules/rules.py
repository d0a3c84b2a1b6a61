"""Static rules: facts about a repo's files and configs that need no weights. Pure functions of what was collected.

Rule ids are stable and never re-used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from scanner.adapter import AdapterConfig, AdapterView, is_pickle
from scanner.hub.names import hub_id
from scanner.model import Finding, Severity, WeightScan

__all__ = ["CONTENT_RULES", "RULES", "RULES_VERSION", "StaticFacts", "check_static"]

RULES_VERSION = "rules-1"
MAX_FINDINGS_PER_RULE = 8
MAX_TEXT = 300
"""Characters of a finding's message and of its evidence: strangers choose the names that go into them."""
_KNOWN_PARENTS = ("transformers", "peft", "diffusers")


@dataclass(frozen=True)
class StaticFacts:
    """What the rules look at."""

    path: str
    """The weight file; empty when the repo has none."""
    siblings: tuple[str, ...]
    """All file names of the repo."""
    config: AdapterConfig | None = None
    view: AdapterView | None = None
    weights: WeightScan | None = None
    base_contradictions: tuple[str, ...] = ()
    """What in the adapter's shapes cannot belong to its base model."""


Rule = Callable[[StaticFacts], Iterator[Finding]]


def _pickle_weights(facts: StaticFacts) -> Iterator[Finding]:
    """LS001: the weights are a pickle, which runs code when a framework loads it."""
    if facts.path and is_pickle(facts.path):
        yield Finding("LS001", Severity.MEDIUM, "the weights are a pickle file; loading one can run code", facts.path)


def _pickle_siblings(facts: StaticFacts) -> Iterator[Finding]:
    """LS002: pickles lie beside the weights (optimizer states, training arguments)."""
    others = [name for name in facts.siblings if is_pickle(name) and name != facts.path]
    if others:
        yield Finding("LS002", Severity.LOW, "pickle files lie beside the weights", ", ".join(others)[:MAX_TEXT])


def _code_siblings(facts: StaticFacts) -> Iterator[Finding]:
    """LS003: Python files, which `trust_remote_code` would run."""
    code = [name for name in facts.siblings if name.endswith((".py", ".pyc", ".so"))]
    if code:
        yield Finding("LS003", Severity.MEDIUM, "the repo carries code", ", ".join(code)[:MAX_TEXT])


def _foreign_import(facts: StaticFacts) -> Iterator[Finding]:
    """LS004: auto_mapping.parent_library outside of the usual libraries is imported when the adapter is loaded."""
    mapping = facts.config.raw.get("auto_mapping") if facts.config else None
    parent = mapping.get("parent_library") if isinstance(mapping, dict) else None
    if parent is None:
        return
    if not isinstance(parent, str) or parent.split(".")[0] not in _KNOWN_PARENTS:
        yield Finding(
            "LS004",
            Severity.HIGH,
            "the config names a library that is imported when it is loaded",
            str(parent)[:MAX_TEXT],
        )


def _base_is_no_hub_id(facts: StaticFacts) -> Iterator[Finding]:
    """LS005: the base model is a path, so nobody can tell which weights the adapter belongs to."""
    base = facts.config.base_model if facts.config else None
    if base is not None and hub_id(base) is None:
        yield Finding("LS005", Severity.LOW, "the base model is a local path or not a Hub id", base[:MAX_TEXT])


def _unexplained_tensors(facts: StaticFacts) -> Iterator[Finding]:
    """LS006: tensors that are no part of a low-rank update and not declared by the config."""
    if facts.view is not None and facts.view.updates and facts.view.unexplained:
        names = facts.view.unexplained
        yield Finding(
            "LS006",
            Severity.MEDIUM,
            f"{len(names)} tensors are neither a low-rank update nor declared by the config",
            ", ".join(names[:8])[:MAX_TEXT],
        )


def _shape_contradiction(facts: StaticFacts) -> Iterator[Finding]:
    """LS007: the tensors' ranks are not the ones that the config declares."""
    for note in facts.view.notes if facts.view else ():
        yield Finding("LS007", Severity.LOW, "the config and the tensors disagree", note[:MAX_TEXT])


def _not_finite(facts: StaticFacts) -> Iterator[Finding]:
    """LS010: NaN or infinity among the factors; such an adapter breaks any model that loads it."""
    if facts.weights is not None:
        broken = [m.module for m in facts.weights.modules if m.features["frobN"] is None]
        if broken:
            text = f"{len(broken)} modules hold NaN or infinity"
            yield Finding("LS010", Severity.HIGH, text, ", ".join(broken[:8])[:MAX_TEXT])


CONTENT_RULES = frozenset({"LS006", "LS007", "LS010"})
"""Rules that look at weights and config alone: what they found once holds for every copy."""

RULES: tuple[Rule, ...] = (
    _pickle_weights,
    _pickle_siblings,
    _code_siblings,
    _foreign_import,
    _base_is_no_hub_id,
    _unexplained_tensors,
    _shape_contradiction,
    _not_finite,
)


def check_static(facts: StaticFacts) -> tuple[Finding, ...]:
    """Run every rule; findings by falling severity, bounded in number and length whatever a rule yields."""
    found = [_cut(finding) for rule in RULES for finding in islice(rule(facts), MAX_FINDINGS_PER_RULE)]
    return tuple(sorted(found, key=lambda f: (-f.severity.order, f.rule_id)))


def _cut(finding: Finding) -> Finding:
    return replace(finding, message=finding.message[:MAX_TEXT], evidence=finding.evidence[:MAX_TEXT])

"""The base model of each adapter: what was claimed, where it leads, and whether the shapes allow it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scanner.adapter import AdapterConfig, AdapterView, read_json_object
from scanner.errors import SkipError
from scanner.hub.cache import cached_file
from scanner.hub.names import cached_id, hub_id, last_segment
from scanner.hub.resolve import MAX_TEXT, BaseResolver
from scanner.model import UNRESOLVED, BaseResolution, BaseStep, RepoRef
from scanner.rules import BaseTexts

__all__ = ["BaseFacts", "Bases", "SettledBase"]

CLAIMS = ("base_models", "tag", "config")
"""Steps in which a listing names a base."""


@dataclass(frozen=True)
class BaseFacts:
    """A base model's own config at the commit that was looked at."""

    config: dict[str, Any]
    commit_sha: str


@dataclass(frozen=True)
class SettledBase:
    """The base of one adapter."""

    base_model: str
    """Root id, or `unresolved`."""
    evidence: tuple[BaseStep, ...]
    contradictions: tuple[str, ...] = ()
    """What in the adapter's shapes cannot belong to this base."""
    commit_sha: str | None = None
    """Head of the base; None where the Hub did not confirm it."""
    disagreement: tuple[str, str] | None = None
    """(the listing's claim, the config's) where they lead to different models."""


class Bases:
    """Base models of one run.

    Args:
        resolver: asks the Hub; None where nothing may be asked: an id is then its own root.
        max_config_bytes: of a base's config.json.
    """

    def __init__(self, resolver: BaseResolver | None, max_config_bytes: int) -> None:
        self._resolver, self._max_config_bytes = resolver, max_config_bytes
        self._facts: dict[tuple[str, str], BaseFacts | None] = {}
        self.texts: dict[str, tuple[BaseTexts | None, str | None]] = {}
        """What `scanner.pipeline.comparison` has read of each base."""

    def resolved(self, repo: RepoRef) -> RepoRef:
        """A listed repo with the root of the base that its listing claims."""
        claim = _claim_of(repo)
        if claim is None:
            return repo
        found = self._resolve(claim.value)
        return replace(repo, base_model=found.root, base_steps=(claim, *found.steps))

    def settle(self, repo: RepoRef, config: AdapterConfig | None, view: AdapterView | None) -> SettledBase:
        """The base that the adapter would be loaded on.

        The listing speaks for the repo, the config for the adapter: where both lead to one root, or the Hub does not
        know the config's name and only the owner differs, it is the listing's; else it is the config's, because that
        is what a framework loads. A path is no name: its last part counts where exactly one confirmed base is called
        so and the shapes agree.
        """
        claim = _claim_of(repo)
        text = config.base_model if config else None
        own = (hub_id(text) or cached_id(text)) if text else None
        listed = self._resolve(claim.value) if claim else None
        if text and own and (claim is None or own.lower() != claim.value.lower()):
            found = self._resolve(own)
            step = BaseStep("config", own, "" if own == text else text[:MAX_TEXT])
            if claim is None or listed is None:
                if found.root == UNRESOLVED:
                    return self._by_path(text, (step, *found.steps), view)
                return self._checked(found, (step, *found.steps), view)
            is_vague = found.root == UNRESOLVED or last_segment(own) == last_segment(claim.value)
            if found.root != listed.root and not (is_vague and not found.commit_sha):
                settled = self._checked(found, (claim, step, *found.steps), view)
                return replace(settled, disagreement=(claim.value[:MAX_TEXT], own))
            return self._checked(listed, (claim, *listed.steps, step, *found.steps), view)
        if claim is not None and listed is not None:
            if listed.root == UNRESOLVED:
                return self._by_path(claim.value, (claim, *listed.steps), view)
            return self._checked(listed, (claim, *listed.steps), view)
        if text:
            return self._by_path(text, (BaseStep("config", text[:MAX_TEXT]),), view)
        return SettledBase(UNRESOLVED, ())

    def facts(self, root: str, commit_sha: str) -> BaseFacts | None:
        """A base's config.json; None where it cannot be had or read."""
        key = (root, commit_sha)
        if key not in self._facts:
            self._facts[key] = self._read_facts(root, commit_sha)
        return self._facts[key]

    def file(self, base: SettledBase, name: str, limit_bytes: int, *, is_small: bool = True) -> Path | None:
        """A file of an adapter's base: from the Hub, or, where nobody may be asked, from the local Hub cache."""
        if base.base_model == UNRESOLVED:
            return None
        if self._resolver is None:
            return cached_file(base.base_model, name, limit_bytes)
        if base.commit_sha is None:
            return None
        return self._resolver.file(base.base_model, base.commit_sha, name, limit_bytes, is_small=is_small)

    def _read_facts(self, root: str, commit_sha: str) -> BaseFacts | None:
        path = self._resolver.file(root, commit_sha, "config.json", self._max_config_bytes) if self._resolver else None
        try:
            return BaseFacts(read_json_object(path, self._max_config_bytes), commit_sha) if path else None
        except SkipError:
            return None

    def _resolve(self, name: str) -> BaseResolution:
        if self._resolver is None:
            return BaseResolution(name, name, None, (BaseStep("not_looked_up", name),))
        return self._resolver.resolve(name)

    def _checked(self, found: BaseResolution, evidence: tuple[BaseStep, ...], view: AdapterView | None) -> SettledBase:
        if not found.commit_sha or view is None:
            return SettledBase(found.root, evidence, commit_sha=found.commit_sha)
        step, contradictions = self._fingerprint(found.root, found.commit_sha, view)
        return SettledBase(found.root, (*evidence, step), contradictions, found.commit_sha)

    def _by_path(self, path: str, evidence: tuple[BaseStep, ...], view: AdapterView | None) -> SettledBase:
        roots = self._resolver.roots_named(path) if self._resolver else {}
        segment = last_segment(path)[:MAX_TEXT]
        if len(roots) != 1 or view is None:
            named = ", ".join(sorted(roots))[:MAX_TEXT]
            kind = "ambiguous" if len(roots) > 1 else "no_match"
            return SettledBase(UNRESOLVED, (*evidence, BaseStep(kind, segment, named)))
        ((root, commit_sha),) = roots.items()
        step, _ = self._fingerprint(root, commit_sha, view)
        settled = root if step.value == "agrees" else UNRESOLVED
        sha = commit_sha if settled != UNRESOLVED else None
        return SettledBase(settled, (*evidence, BaseStep("path", root, segment), step), commit_sha=sha)

    def _fingerprint(self, root: str, commit_sha: str, view: AdapterView) -> tuple[BaseStep, tuple[str, ...]]:
        facts = self.facts(root, commit_sha)
        if facts is None:
            return BaseStep("fingerprint", "unknown", "the base's config.json cannot be had"), ()
        from scanner.adapter.fingerprint import adapter_fingerprint, base_fingerprint, compare

        compared = compare(adapter_fingerprint(view), base_fingerprint(facts.config))
        if compared.contradictions:
            step = BaseStep("fingerprint", "contradicts", "; ".join(compared.contradictions)[:MAX_TEXT])
        elif compared.agreements:
            step = BaseStep("fingerprint", "agrees", ", ".join(compared.agreements)[:MAX_TEXT])
        else:
            step = BaseStep("fingerprint", "unknown", "nothing to compare")
        return step, compared.contradictions


def _claim_of(repo: RepoRef) -> BaseStep | None:
    """What the listing claims. A reference without steps (an older one, a test's) has the id alone."""
    if repo.base_steps and repo.base_steps[0].kind in CLAIMS:
        return repo.base_steps[0]
    return BaseStep("config", repo.base_model) if repo.base_model != UNRESOLVED else None

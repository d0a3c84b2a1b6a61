"""Stages 1-3 for one repo: fetch and read, static rules, weight features. One record per adapter, whatever happens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scanner.adapter import CONFIG_NAME, Candidate, find_candidates, is_pickle
from scanner.errors import AccessDeniedError, LimitExceededError, SkipError, TransientError
from scanner.hub.sources import HubFiles, RepoFiles
from scanner.model import (
    UNRESOLVED,
    VANISHED,
    AdapterInfo,
    Outcome,
    RepoRef,
    ScanRecord,
    adapter_id_of,
)
from scanner.pipeline.around import Around
from scanner.pipeline.bases import Bases, SettledBase
from scanner.pipeline.facts import bare_facts, gather_facts
from scanner.pipeline.outcomes import failed_record, failure, outcome_of
from scanner.pipeline.read import Reading, read_config, read_weights
from scanner.probe.profile import TaskProfile, choose_profile
from scanner.rules import CONTENT_RULES, RULES_VERSION, Scope, check_static, rule_plugins
from scanner.settings import Settings
from scanner.weights import FEATURE_VERSION, SKETCH_VERSION

if TYPE_CHECKING:
    from scanner.hub.client import HubClient

__all__ = ["Earlier", "collect_hub_repo", "collect_repo", "detectors_of", "fetch_again"]

Earlier = Callable[[str, str], ScanRecord | None]
"""(sha256 of the weights, sha256 of the config or empty) -> a scan of the same content by the same detectors."""


def detectors_of(settings: Settings) -> str:
    """Versions of everything that a stored scan may be re-used for."""
    versions = f"{RULES_VERSION}/{FEATURE_VERSION}/{SKETCH_VERSION}"
    return versions if settings.features == "default" else f"{versions}/{settings.features}"


def collect_hub_repo(
    client: HubClient,
    repo: RepoRef,
    folder: Path,
    settings: Settings,
    earlier: Earlier | None = None,
    bases: Bases | None = None,
) -> list[ScanRecord]:
    """`collect_repo` for a listed repo; where its commit is gone by now, the commit that took its place.

    Args:
        client: the Hub.
        repo: as it was listed.
        folder: for its downloads.
        settings: limits.
        earlier: where scans of the same content are found.
        bases: where the names of base models lead; None asks nobody.
    """
    records = collect_repo(repo, HubFiles(client, repo, folder), settings, earlier, bases, client)
    if not any(record.reason in VANISHED for record in records):
        return records
    try:
        current = client.repo(str(repo.repo_id))
    except (SkipError, TransientError) as error:
        return [failure(repo, error)]
    if current.repo_uid != repo.repo_uid:
        message = f"the name {repo.repo_id} belongs to another repo by now"
        return [failed_record(repo, Outcome.INCONCLUSIVE, "gone", message)]
    if current.commit_sha == repo.commit_sha:
        return records
    if bases is not None:
        current = bases.resolved(current)
    return collect_repo(current, HubFiles(client, current, folder), settings, earlier, bases, client)


def fetch_again(record: ScanRecord, files: RepoFiles, settings: Settings) -> ScanRecord:
    """A record whose files are on this machine (again).

    Raises:
        LorascopeError: they cannot be had.
    """
    path = record.info.adapter_path
    parts = next((c.parts for c in find_candidates(files.names()) if c.path == path), (path,))
    weights = [str(files.fetch(part, settings.max_weights_bytes)) for part in parts]
    config = None
    if record.info.config_sha256:
        name = str(Path(path).with_name(CONFIG_NAME))
        config = str(files.fetch(name, settings.max_config_bytes, is_small=True))
    return replace(record, local_path=weights[0], more_local_paths=tuple(weights[1:]), config_path=config)


def collect_repo(
    repo: RepoRef,
    files: RepoFiles,
    settings: Settings,
    earlier: Earlier | None = None,
    bases: Bases | None = None,
    client: HubClient | None = None,
) -> list[ScanRecord]:
    """Scan everything in a repo that may be an adapter.

    Args:
        repo: pinned repo, or folder.
        files: its files.
        settings: limits.
        earlier: where scans of the same content are found; None looks at everything afresh.
        bases: where the names of base models lead; None asks nobody.
        client: the Hub that the repo is on.

    Returns:
        At least one record; a repo that cannot be read gives one with the reason. Hub records carry where the weights
        lie for the probe (`local_path`).
    """
    try:
        if repo.disabled:
            raise AccessDeniedError("the repo is disabled on the Hub", "disabled")
        names = files.names()
    except Exception as error:  # noqa: BLE001 - `outcome_of` stores it, or raises what must stop everything
        return [failure(repo, error)]
    bases = bases or Bases(None, settings.max_config_bytes)
    closed = [_unreadable_folder(repo, path) for path in getattr(files, "unreadable", ())]
    # What looks like a base model's own weights is read where it costs nothing; a Hub repo of them is no adapter.
    candidates = [c for c in find_candidates(names) if repo.is_folder or not c.likely_base]
    if not candidates and not closed:
        return [failed_record(repo, Outcome.INCONCLUSIVE, "no_weights", "the repo holds no adapter weights (yet)")]
    limit = settings.max_adapters_per_repo
    chosen = candidates[:limit]
    weights = frozenset(part for candidate in chosen for part in candidate.parts)
    job = _Job(repo, files, settings, bases, Around(files, names, settings, repo, client, weights))
    records = [_collect_adapter(job, candidate, earlier) for candidate in chosen]
    if len(candidates) > limit:
        too_many = LimitExceededError("number of adapters in the repo", limit, len(candidates))
        records.append(failure(repo, too_many))
    return records + closed


@dataclass(frozen=True)
class _Job:
    """One repo, as its adapters are looked at one after the other."""

    repo: RepoRef
    files: RepoFiles
    settings: Settings
    bases: Bases
    around: Around


def _collect_adapter(job: _Job, candidate: Candidate, earlier: Earlier | None) -> ScanRecord:
    repo, reading = job.repo, Reading()
    outcome, reason, message = Outcome.PASS, "", ""
    refusals: tuple[SkipError, ...] = ()
    known: ScanRecord | None = None
    try:
        read_config(reading, job.files, candidate, job.settings)
        if not repo.is_folder and earlier and len(candidate.parts) < 2 and not is_pickle(candidate.path):
            digest = job.files.sha256(candidate.path)
            known = earlier(digest, reading.config_sha256) if digest else None
        if known:
            copy = _copied(known, job, candidate, reading)
            if copy:
                return copy
        read_weights(reading, job.files, candidate, job.settings)
    except Exception as error:  # noqa: BLE001 - one adapter's surprise must not cost its neighbours
        outcome, reason, message = outcome_of(error, repo)
        refusals = (error,) if isinstance(error, SkipError) else ()
    base = job.bases.settle(repo, reading.config, reading.view)
    try:
        facts = gather_facts(job.around, job.bases, job.settings, candidate, reading, base, refusals)
    except Exception as error:  # noqa: BLE001 - what lies around it could not be fetched, or is a surprise itself
        outcome, reason, message = outcome_of(error, repo)
        facts = bare_facts(job.around, candidate, reading, base, refusals)
    findings = check_static(facts, rule_plugins())
    view, config = reading.view, reading.config
    profile = _profile(job, reading, base) if view and outcome == Outcome.PASS else None
    commit = repo.commit_sha or _folder_commit(reading.content_sha256, reading.config_sha256)
    info = AdapterInfo(
        adapter_id=adapter_id_of(repo.repo_uid, commit, candidate.path),
        repo=repo,
        adapter_path=candidate.path,
        layout=view.layout if view else _layout_of(candidate.path, reading.format),
        peft_type=config.peft_type if config else None,
        rank=view.rank if view else None,
        alpha=config.alpha if config else None,
        scaling=view.scaling if view else None,
        modules=len(view.updates) if view else 0,
        target_modules=view.target_modules if view else (),
        base_model=base.base_model,
        base_model_claimed=config.base_model if config else None,
        task_type=config.task_type if config else None,
        task_profile=profile.name if profile else None,
        profile_reason=profile.reason if profile else "",
        coverage=view.coverage if view else 0.0,
        content_sha256=reading.content_sha256,
        size_bytes=reading.size_bytes,
        config_sha256=reading.config_sha256 or None,
        detectors=detectors_of(job.settings),
        base_evidence=base.evidence,
    )
    paths = [str(path) for path in reading.weights_paths]
    return ScanRecord(
        info=info,
        outcome=outcome,
        reason=reason,
        message=message,
        stage_reached=reading.stage,
        findings=findings,
        weights=reading.weights,
        local_path=paths[0] if paths else None,
        more_local_paths=tuple(paths[1:]),
        config_path=str(reading.config_path) if reading.config_path else None,
    )


def _profile(job: _Job, reading: Reading, base: SettledBase) -> TaskProfile | None:
    if reading.view is None:
        return None
    card = next((text for name, text in job.around.texts.items() if name.lower() == "readme.md"), "")
    facts = job.bases.facts(base.base_model, base.commit_sha) if base.commit_sha else None
    return choose_profile(reading.view, reading.config, card, facts.config if facts else None)


def _copied(known: ScanRecord, job: _Job, candidate: Candidate, reading: Reading) -> ScanRecord | None:
    """The record of a scan of the same weights and config, as this repo's own; None where the base is another one.

    What follows from the content is taken over, what follows from the repo around it is looked at here.
    """
    repo = job.repo
    base = job.bases.settle(repo, reading.config, None)
    if base.base_model == UNRESOLVED and any(step.kind == "path" for step in known.info.base_evidence):
        # The same path in the same config on the same shapes.
        base = replace(base, base_model=known.info.base_model, evidence=known.info.base_evidence)
    if known.info.base_model != base.base_model:
        return None
    compared = tuple(step for step in known.info.base_evidence if step.kind == "fingerprint")
    taken_over = CONTENT_RULES | {rule.id for rule in rule_plugins() if rule.scope == Scope.CONTENT}
    content = [finding for finding in known.findings if finding.rule_id in taken_over]
    facts = gather_facts(job.around, job.bases, job.settings, candidate, reading, base, ())
    around = [finding for finding in check_static(facts, rule_plugins()) if finding.rule_id not in taken_over]
    own_id = adapter_id_of(repo.repo_uid, str(repo.commit_sha), candidate.path)
    origin = known.info.copied_from or known.info.adapter_id
    info = replace(
        known.info,
        adapter_id=own_id,
        repo=repo,
        adapter_path=candidate.path,
        copied_from=origin if origin != own_id else None,  # a second look at the same commit copies itself
        base_evidence=(*(step for step in base.evidence if step.kind != "fingerprint"), *compared),
    )
    return replace(
        known,
        info=info,
        findings=tuple(sorted((*content, *around), key=lambda f: (-f.severity.order, f.rule_id))),
        local_path=None,
        more_local_paths=(),
        config_path=None,
    )


def _layout_of(path: str, kind: str) -> str:
    return "pickle" if is_pickle(path) or kind in ("zip", "pickle", "tar") else "unknown"


def _folder_commit(digest: str | None, config_digest: str) -> str:
    """Stands in for the commit of a folder: changed weights or a changed config are a new adapter."""
    return hashlib.sha256("\0".join((digest or "", config_digest)).encode()).hexdigest()


def _unreadable_folder(repo: RepoRef, path: str) -> ScanRecord:
    return failed_record(repo, Outcome.ERROR, "unreadable", f"cannot look into {path}", path=path)

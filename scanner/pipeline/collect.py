"""Stages 1-3 for one repo: fetch and read, static rules, weight features. One record per adapter, whatever happens."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scanner.adapter import (
    CONFIG_NAME,
    AdapterConfig,
    AdapterView,
    Candidate,
    find_candidates,
    is_pickle,
    open_safetensors,
    parse_config,
    read_json_object,
    view_adapter,
)
from scanner.errors import (
    AccessDeniedError,
    LimitExceededError,
    LorascopeError,
    MalformedFileError,
    SkipError,
    StopError,
    TransientError,
    UnsupportedError,
)
from scanner.hub.sources import HubFiles, RepoFiles
from scanner.model import (
    MAX_TRIES,
    UNRESOLVED,
    VANISHED,
    AdapterInfo,
    Finding,
    Outcome,
    RepoRef,
    ScanRecord,
    Severity,
    Stage,
    adapter_id_of,
)
from scanner.pipeline.bases import Bases, SettledBase
from scanner.probe.profile import choose_profile
from scanner.rules import CONTENT_RULES, RULES_VERSION, StaticFacts, check_static
from scanner.settings import Settings
from scanner.weights import FEATURE_VERSION, scan_weights

if TYPE_CHECKING:
    from scanner.hub.client import HubClient

__all__ = ["DETECTORS", "Earlier", "collect_hub_repo", "collect_repo", "failed_record", "fetch_again"]

log = logging.getLogger(__name__)

DETECTORS = f"{RULES_VERSION}/{FEATURE_VERSION}"
"""Versions of everything that a stored scan may be re-used for."""
Earlier = Callable[[str, str], ScanRecord | None]
"""(sha256 of the weights, sha256 of the config or empty) -> a scan of the same content by the same detectors."""


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
    records = collect_repo(repo, HubFiles(client, repo, folder), settings, earlier, bases)
    if not any(record.reason in VANISHED for record in records):
        return records
    try:
        current = client.repo(str(repo.repo_id))
    except (SkipError, TransientError) as error:
        return [failed_record(repo, *_outcome_of(error, repo))]
    if current.repo_uid != repo.repo_uid:
        message = f"the name {repo.repo_id} belongs to another repo by now"
        return [failed_record(repo, Outcome.INCONCLUSIVE, "gone", message)]
    if current.commit_sha == repo.commit_sha:
        return records
    if bases is not None:
        current = bases.resolved(current)
    return collect_repo(current, HubFiles(client, current, folder), settings, earlier, bases)


def fetch_again(record: ScanRecord, files: RepoFiles, settings: Settings) -> ScanRecord:
    """A record whose files are on this machine (again).

    Raises:
        LorascopeError: they cannot be had.
    """
    weights = files.fetch(record.info.adapter_path, settings.max_weights_bytes)
    config = None
    if record.info.config_sha256:
        name = str(Path(record.info.adapter_path).with_name(CONFIG_NAME))
        config = str(files.fetch(name, settings.max_config_bytes, is_small=True))
    return replace(record, local_path=str(weights), config_path=config)


def collect_repo(
    repo: RepoRef,
    files: RepoFiles,
    settings: Settings,
    earlier: Earlier | None = None,
    bases: Bases | None = None,
) -> list[ScanRecord]:
    """Scan everything in a repo that may be an adapter.

    Args:
        repo: pinned repo, or folder.
        files: its files.
        settings: limits.
        earlier: where scans of the same content are found; None looks at everything afresh.
        bases: where the names of base models lead; None asks nobody.

    Returns:
        At least one record; a repo that cannot be read gives one with the reason. Hub records carry where the weights
        lie for the probe (`local_path`).
    """
    try:
        if repo.disabled:
            raise AccessDeniedError("the repo is disabled on the Hub", "disabled")
        names = files.names()
    except Exception as error:  # noqa: BLE001 - `_outcome_of` stores it, or raises what must stop everything
        return [failed_record(repo, *_outcome_of(error, repo))]
    bases = bases or Bases(None, settings.max_config_bytes)
    closed = [_unreadable_folder(repo, path) for path in getattr(files, "unreadable", ())]
    # What looks like a base model's own weights is read where it costs nothing; a Hub repo of them is no adapter.
    candidates = [c for c in find_candidates(names) if repo.is_folder or not c.likely_base]
    if not candidates and not closed:
        return [failed_record(repo, Outcome.INCONCLUSIVE, "no_weights", "the repo holds no adapter weights (yet)")]
    limit = settings.max_adapters_per_repo
    records = [
        _collect_adapter(repo, files, candidate, names, settings, earlier, bases) for candidate in candidates[:limit]
    ]
    if len(candidates) > limit:
        too_many = LimitExceededError("number of adapters in the repo", limit, len(candidates))
        records.append(failed_record(repo, *_outcome_of(too_many, repo)))
    return records + closed


def _collect_adapter(
    repo: RepoRef,
    files: RepoFiles,
    candidate: Candidate,
    names: list[str],
    settings: Settings,
    earlier: Earlier | None,
    bases: Bases,
) -> ScanRecord:
    config: AdapterConfig | None = None
    view: AdapterView | None = None
    weights = None
    local: Path | None = None
    config_local: Path | None = None
    digest: str | None = None
    config_digest = ""
    extra: tuple[Finding, ...] = ()
    outcome, reason, message, stage = Outcome.PASS, "", "", Stage.STATIC
    try:
        if candidate.config_path:
            config_local = files.fetch(candidate.config_path, settings.max_config_bytes, is_small=True)
            config_digest = _sha256(config_local)
            config = parse_config(read_json_object(config_local, settings.max_config_bytes))
        if not repo.is_folder:
            digest = files.sha256(candidate.path)
            if digest and earlier and (known := earlier(digest, config_digest)):
                copy = _copied(known, repo, candidate, names, config, bases)
                if copy:
                    return copy
        if repo.is_folder or not is_pickle(candidate.path):
            local = files.fetch(candidate.path, settings.max_weights_bytes)
            digest = _sha256(local)
        if is_pickle(candidate.path):
            raise UnsupportedError("pickle weights are not read by this version", "pickle_weights")
        if not candidate.path.lower().endswith(".safetensors"):
            suffix = candidate.path.rsplit(".", 1)[-1].lower()
            raise UnsupportedError(f".{suffix} weights are not read by this version", f"layout_{suffix}")
        assert local is not None
        view = view_adapter(open_safetensors(local), config, settings.max_rank)
        if view.unsupported_reason:
            raise UnsupportedError(
                f"cannot be read as low-rank updates ({view.unsupported_reason})", view.unsupported_reason
            )
        weights = scan_weights(view.updates)
        stage = Stage.WEIGHTS
    except Exception as error:  # noqa: BLE001 - one adapter's surprise must not cost its neighbours
        outcome, reason, message, extra = _outcome_of(error, repo)
    base = bases.settle(repo, config, view)
    facts = StaticFacts(candidate.path, tuple(names), config, view, weights, base.contradictions)
    findings = tuple(sorted((*extra, *check_static(facts)), key=lambda f: -f.severity.order))
    info = AdapterInfo(
        adapter_id=adapter_id_of(
            repo.repo_uid, repo.commit_sha or _folder_commit(digest, config_digest), candidate.path
        ),
        repo=repo,
        adapter_path=candidate.path,
        layout=view.layout if view else _layout_of(candidate.path),
        peft_type=config.peft_type if config else None,
        rank=view.rank if view else None,
        alpha=config.alpha if config else None,
        scaling=view.scaling if view else None,
        modules=len(view.updates) if view else 0,
        target_modules=view.target_modules if view else (),
        base_model=base.base_model,
        base_model_claimed=config.base_model if config else None,
        task_type=config.task_type if config else None,
        task_profile=choose_profile(view, config, base.base_model) if view and outcome == Outcome.PASS else None,
        coverage=view.coverage if view else 0.0,
        content_sha256=digest,
        size_bytes=local.stat().st_size if local else 0,
        config_sha256=config_digest or None,
        detectors=DETECTORS,
        base_evidence=base.evidence,
    )
    return ScanRecord(
        info=info,
        outcome=outcome,
        reason=reason,
        message=message,
        stage_reached=stage,
        findings=findings,
        weights=weights,
        local_path=str(local) if local else None,
        config_path=str(config_local) if config_local else None,
    )


def _copied(
    known: ScanRecord,
    repo: RepoRef,
    candidate: Candidate,
    names: list[str],
    config: AdapterConfig | None,
    bases: Bases,
) -> ScanRecord | None:
    """The record of a scan of the same weights and config, as this repo's own; None where the base is another one.

    What follows from the content is taken over, what follows from the repo around it is looked at here.
    """
    base = bases.settle(repo, config, None)
    if base.base_model == UNRESOLVED and any(step.kind == "path" for step in known.info.base_evidence):
        # The same path in the same config on the same shapes.
        base = SettledBase(known.info.base_model, known.info.base_evidence)
    if known.info.base_model != base.base_model:
        return None
    compared = tuple(step for step in known.info.base_evidence if step.kind == "fingerprint")
    content = [finding for finding in known.findings if finding.rule_id in CONTENT_RULES]
    around = check_static(StaticFacts(candidate.path, tuple(names), config))
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
        findings=tuple(sorted((*content, *around), key=lambda f: -f.severity.order)),
        local_path=None,
        config_path=None,
    )


def _layout_of(path: str) -> str:
    return "pickle" if is_pickle(path) else "unknown"


def _folder_commit(digest: str | None, config_digest: str) -> str:
    """Stands in for the commit of a folder: changed weights or a changed config are a new adapter."""
    return hashlib.sha256("\0".join((digest or "", config_digest)).encode()).hexdigest()


def _unreadable_folder(repo: RepoRef, path: str) -> ScanRecord:
    return failed_record(repo, Outcome.ERROR, "unreadable", f"cannot look into {path}", path=path)


def failed_record(
    repo: RepoRef,
    outcome: Outcome,
    reason: str,
    message: str,
    findings: tuple[Finding, ...] = (),
    path: str = "",
) -> ScanRecord:
    """A record for a repo, or a part of it, in which no adapter could be looked at."""
    info = AdapterInfo(
        adapter_id=adapter_id_of(repo.repo_uid, repo.commit_sha or "", path),
        repo=repo,
        adapter_path=path,
        layout="none",
        base_model=repo.base_model,
        base_evidence=repo.base_steps,
    )
    return ScanRecord(info, outcome, reason, message, Stage.LISTED, findings)


def _outcome_of(error: Exception, repo: RepoRef) -> tuple[Outcome, str, str, tuple[Finding, ...]]:
    """What an error means for the adapter it happened to: (outcome, reason, message, findings).

    Raises:
        StopError: the error itself, when nothing after it can succeed.
    """
    if isinstance(error, StopError):
        raise error
    if not isinstance(error, LorascopeError):
        # A gap in our own error handling, which a stranger's file has found. It is told, stored and survived.
        log.error("unexpected %s in %s", type(error).__name__, repo.target, exc_info=error)
        return Outcome.ERROR, "internal_error", f"{type(error).__name__}: {str(error)[:200]}", ()
    if isinstance(error, MalformedFileError):
        finding = Finding("LS009", Severity.HIGH, "a file breaks the rules of its format", error.message[:300])
        return Outcome.UNSUPPORTED, error.code, error.message, (finding,)
    if isinstance(error, LimitExceededError):
        finding = Finding("LS008", Severity.MEDIUM, "something is larger than lorascope accepts", error.message[:300])
        return Outcome.INCONCLUSIVE, error.code, error.message, (finding,)
    if isinstance(error, UnsupportedError) and error.code == "unreadable":
        return Outcome.ERROR, error.code, error.message, ()
    if isinstance(error, UnsupportedError):
        return Outcome.UNSUPPORTED, error.code, error.message, ()
    given_up = f" (given up after {MAX_TRIES} crawls, until the repo changes)" if repo.tries + 1 >= MAX_TRIES else ""
    if isinstance(error, SkipError):
        ending = given_up if error.code in VANISHED else ""
        return Outcome.INCONCLUSIVE, error.code, f"{error.message}{ending}", ()
    return Outcome.ERROR, error.code, f"{error.message}{given_up or ' (after all tries)'}", ()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()

"""Stages 1-3 for one repo: fetch and read, static rules, weight features. One record per adapter, whatever happens."""

from __future__ import annotations

import hashlib
from pathlib import Path

from scanner.adapter import (
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
    TransientError,
    UnsupportedError,
)
from scanner.hub.names import hub_id
from scanner.hub.sources import RepoFiles
from scanner.model import (
    UNRESOLVED,
    AdapterInfo,
    Finding,
    Outcome,
    RepoRef,
    ScanRecord,
    Severity,
    Stage,
    adapter_id_of,
)
from scanner.probe.profile import choose_profile
from scanner.rules import StaticFacts, check_static
from scanner.settings import Settings
from scanner.weights import scan_weights

__all__ = ["collect_repo", "failed_record"]


def collect_repo(repo: RepoRef, files: RepoFiles, settings: Settings) -> list[ScanRecord]:
    """Scan everything in a repo that may be an adapter.

    Args:
        repo: pinned repo, or folder.
        files: its files.
        settings: limits.

    Returns:
        At least one record; a repo that cannot be read gives one with the reason. Hub records carry where the weights
        lie for the probe (`local_path`).
    """
    try:
        if repo.disabled:
            raise AccessDeniedError("the repo is disabled on the Hub")
        names = files.names()
    except LorascopeError as error:
        return [failed_record(repo, *_outcome_of(error))]
    candidates = find_candidates(names)
    if not candidates:
        return [failed_record(repo, Outcome.INCONCLUSIVE, "no_weights", "the repo holds no adapter weights (yet)")]
    limit = settings.max_adapters_per_repo
    records = [_collect_adapter(repo, files, candidate, names, settings) for candidate in candidates[:limit]]
    if len(candidates) > limit:
        too_many = LimitExceededError("number of adapters in the repo", limit, len(candidates))
        records.append(failed_record(repo, *_outcome_of(too_many)))
    return records


def _collect_adapter(
    repo: RepoRef, files: RepoFiles, candidate: Candidate, names: list[str], settings: Settings
) -> ScanRecord:
    config: AdapterConfig | None = None
    view: AdapterView | None = None
    weights = None
    local: Path | None = None
    config_local: Path | None = None
    digest = files.sha256(candidate.path) if is_pickle(candidate.path) else None
    extra: tuple[Finding, ...] = ()
    outcome, reason, message, stage = Outcome.PASS, "", "", Stage.STATIC
    try:
        if candidate.config_path:
            config_local = files.fetch(candidate.config_path, settings.max_config_bytes)
            config = parse_config(read_json_object(config_local, settings.max_config_bytes))
        if is_pickle(candidate.path):
            raise UnsupportedError("pickle weights are not read by this version", "pickle_weights")
        if not candidate.path.lower().endswith(".safetensors"):
            suffix = candidate.path.rsplit(".", 1)[-1].lower()
            raise UnsupportedError(f".{suffix} weights are not read by this version", f"layout_{suffix}")
        local = files.fetch(candidate.path, settings.max_weights_bytes)
        digest = _sha256(local)
        view = view_adapter(open_safetensors(local), config, settings.max_rank)
        if view.unsupported_reason:
            raise UnsupportedError(
                f"cannot be read as low-rank updates ({view.unsupported_reason})", view.unsupported_reason
            )
        weights = scan_weights(view.updates)
        stage = Stage.WEIGHTS
    except LorascopeError as error:
        outcome, reason, message, extra = _outcome_of(error)
    facts = StaticFacts(candidate.path, tuple(names), config, view, weights)
    findings = tuple(sorted((*extra, *check_static(facts)), key=lambda f: -f.severity.order))
    base = repo.base_model if repo.base_model != UNRESOLVED else hub_id(config.base_model if config else None)
    base = base or UNRESOLVED
    info = AdapterInfo(
        adapter_id=adapter_id_of(repo.repo_uid, repo.commit_sha or digest or "", candidate.path),
        repo=repo,
        adapter_path=candidate.path,
        layout=view.layout if view else _layout_of(candidate.path),
        peft_type=config.peft_type if config else None,
        rank=view.rank if view else None,
        alpha=config.alpha if config else None,
        scaling=view.scaling if view else None,
        modules=len(view.updates) if view else 0,
        target_modules=view.target_modules if view else (),
        base_model=base,
        base_model_claimed=config.base_model if config else None,
        task_type=config.task_type if config else None,
        task_profile=choose_profile(view, config, base) if view and outcome == Outcome.PASS else None,
        coverage=view.coverage if view else 0.0,
        content_sha256=digest,
        size_bytes=local.stat().st_size if local else 0,
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


def _layout_of(path: str) -> str:
    return "pickle" if is_pickle(path) else "unknown"


def failed_record(
    repo: RepoRef, outcome: Outcome, reason: str, message: str, findings: tuple[Finding, ...] = ()
) -> ScanRecord:
    """A record for a repo in which no adapter could be looked at; its adapter path is empty."""
    info = AdapterInfo(
        adapter_id=adapter_id_of(repo.repo_uid, repo.commit_sha or "", ""),
        repo=repo,
        adapter_path="",
        layout="none",
        base_model=repo.base_model,
    )
    return ScanRecord(info, outcome, reason, message, Stage.LISTED, findings)


def _outcome_of(error: LorascopeError) -> tuple[Outcome, str, str, tuple[Finding, ...]]:
    """What an error means for the adapter it happened to: (outcome, reason, message, findings).

    Raises:
        LorascopeError: the error itself, when it is one that must stop everything.
    """
    if isinstance(error, MalformedFileError):
        finding = Finding("LS009", Severity.HIGH, "a file breaks the rules of its format", error.message[:300])
        return Outcome.UNSUPPORTED, error.code, error.message, (finding,)
    if isinstance(error, LimitExceededError):
        finding = Finding("LS008", Severity.MEDIUM, "something is larger than lorascope accepts", error.message[:300])
        return Outcome.INCONCLUSIVE, error.code, error.message, (finding,)
    if isinstance(error, UnsupportedError):
        return Outcome.UNSUPPORTED, error.code, error.message, ()
    if isinstance(error, SkipError):
        return Outcome.INCONCLUSIVE, error.code, error.message, ()
    if isinstance(error, TransientError):
        return Outcome.ERROR, error.code, f"{error.message} (after all tries)", ()
    raise error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()

"""What an error means for the repo or adapter that it happened to, and records of what could not be looked at."""

from __future__ import annotations

import logging

from scanner.errors import (
    LorascopeError,
    MalformedFileError,
    SkipError,
    StopError,
    UnsupportedError,
)
from scanner.model import (
    MAX_TRIES,
    VANISHED,
    AdapterInfo,
    Finding,
    Outcome,
    RepoRef,
    ScanRecord,
    Stage,
    adapter_id_of,
)
from scanner.rules import StaticFacts, check_static

__all__ = ["failed_record", "failure", "outcome_of"]

log = logging.getLogger(__name__)


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


def failure(repo: RepoRef, error: Exception) -> ScanRecord:
    """The record of a repo that an error kept from being looked at.

    Raises:
        StopError: the error itself.
    """
    outcome, reason, message = outcome_of(error, repo)
    refusals = (error,) if isinstance(error, SkipError) else ()
    return failed_record(repo, outcome, reason, message, check_static(StaticFacts("", (), refusals=refusals)))


def outcome_of(error: Exception, repo: RepoRef) -> tuple[Outcome, str, str]:
    """What an error means for the adapter it happened to: (outcome, reason, message).

    Raises:
        StopError: the error itself, when nothing after it can succeed.
    """
    if isinstance(error, StopError):
        raise error
    if not isinstance(error, LorascopeError):
        # A gap in our own error handling, which a stranger's file has found. It is told, stored and survived.
        log.error("unexpected %s in %s", type(error).__name__, repo.target, exc_info=error)
        return Outcome.ERROR, "internal_error", f"{type(error).__name__}: {str(error)[:200]}"
    if isinstance(error, UnsupportedError) and error.code == "unreadable":
        return Outcome.ERROR, error.code, error.message
    if isinstance(error, UnsupportedError | MalformedFileError):
        return Outcome.UNSUPPORTED, error.code, error.message
    given_up = f" (given up after {MAX_TRIES} crawls, until the repo changes)" if repo.tries + 1 >= MAX_TRIES else ""
    if isinstance(error, SkipError):
        ending = given_up if error.code in VANISHED else ""
        return Outcome.INCONCLUSIVE, error.code, f"{error.message}{ending}"
    return Outcome.ERROR, error.code, f"{error.message}{given_up or ' (after all tries)'}"

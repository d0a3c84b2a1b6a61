"""The Hub through `huggingface_hub`: listing, repo info, pinned and verified downloads."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from scanner.errors import (
    AccessDeniedError,
    CorruptDownloadError,
    HubUnavailableError,
    LimitExceededError,
    TransientError,
)
from scanner.hub.http import byte_limit, install_client  # sets the environment first

import httpx2  # isort: skip
from huggingface_hub import HfApi, ModelInfo, hf_hub_download  # isort: skip
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled  # isort: skip
from huggingface_hub.hf_api import RepoFile  # isort: skip

from scanner.hub.names import hub_id  # isort: skip
from scanner.hub.retry import call_with_retries, retry_delay_s  # isort: skip
from scanner.model import UNRESOLVED, RepoRef  # isort: skip
from scanner.settings import Settings, hub_endpoint  # isort: skip

__all__ = ["HubClient", "RemoteFile"]

T = TypeVar("T")

_EXPAND: list[Any] = [
    "sha", "createdAt", "lastModified", "tags", "library_name", "baseModels", "config", "siblings",
    "gated", "private", "disabled",
]  # fmt: skip


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repo at a commit, with the checksum that its bytes must have."""

    path: str
    size_bytes: int
    sha256: str | None
    """Of LFS files."""
    git_blob_sha1: str | None
    """Of the others."""


def _timestamp(value: datetime | None) -> str | None:
    return value.astimezone(UTC).isoformat() if value else None


def _claimed_base(info: ModelInfo) -> str | None:
    """Base model as the listing tells it: the Hub's own resolution first, then what the config claims."""
    related = getattr(info, "base_models", None)
    if isinstance(related, dict):
        for model in related.get("models") or []:
            if isinstance(model, dict) and hub_id(model.get("id")):
                return str(model["id"])
    config = info.config if isinstance(info.config, dict) else {}
    peft = config.get("peft") if isinstance(config.get("peft"), dict) else {}
    return hub_id((peft or {}).get("base_model_name_or_path"))


class HubClient:
    """One endpoint. Every method raises only lorascope's errors; transient ones were already retried."""

    def __init__(self, settings: Settings, endpoint: str | None = None) -> None:
        self.endpoint = (endpoint or hub_endpoint()).rstrip("/")
        self.settings = settings
        self.rate = install_client(self.endpoint, settings.request_timeout_s)
        self._api = HfApi(endpoint=self.endpoint)

    def ping(self) -> None:
        """One small request, tried once.

        Raises:
            HubUnreachableError: no connection.
        """
        _translated(lambda: next(iter(self._api.list_models(limit=1)), None))

    def iter_adapters(self, sort: str, tag: str, base: str | None = None) -> Iterator[RepoRef]:
        """Repos with a tag, newest first by `sort` (`createdAt` or `lastModified`), pages fetched as needed.

        One listing call carries all that grouping needs, so no repo costs a request of its own.
        """
        filters = [tag, *([f"base_model:adapter:{base}"] if base else [])]
        seen: set[str] = set()
        attempt = 0
        while True:
            attempt += 1
            # A generator that raised is finished, so a failed page is retried by listing again; `seen` keeps the
            # repos that were already handed out from coming twice.
            listing = iter(self._api.list_models(filter=filters, sort=sort, expand=_EXPAND))  # type: ignore[arg-type]
            try:
                while (info := _translated(lambda pages=listing: next(pages, None))) is not None:  # type: ignore[misc]
                    ref = self._repo_ref(info)
                    if ref.repo_uid not in seen:
                        seen.add(ref.repo_uid)
                        yield ref
                return
            except TransientError as error:
                if attempt >= self.settings.max_attempts:
                    raise
                time.sleep(retry_delay_s(error, attempt, self.settings.max_sleep_s))

    def repo(self, repo_id: str, revision: str | None = None) -> RepoRef:
        """One repo, pinned to the commit that `revision` (default: the head of main) names now.

        Raises:
            AccessDeniedError: no such repo or revision, or no right to see it.
        """
        info = self._call(lambda: self._api.model_info(repo_id, revision=revision, expand=_EXPAND))
        target = f"{repo_id}@{revision}" if revision else repo_id
        return self._repo_ref(info, target=target)

    def files(self, repo: RepoRef) -> list[RemoteFile]:
        """All files at the pinned commit with sizes and checksums.

        Raises:
            LimitExceededError: more than `settings.max_files_per_repo`.
        """
        limit = self.settings.max_files_per_repo

        def listing() -> list[RemoteFile]:
            found: list[RemoteFile] = []
            for entry in self._api.list_repo_tree(str(repo.repo_id), recursive=True, revision=repo.commit_sha):
                if isinstance(entry, RepoFile):
                    lfs = entry.lfs
                    found.append(
                        RemoteFile(
                            entry.path,
                            entry.size,
                            lfs.sha256 if lfs else None,
                            None if lfs else entry.blob_id,
                        )
                    )
                if len(found) > limit:
                    raise LimitExceededError("number of files in the repo", limit, len(found))
            return found

        return self._call(listing)

    def download(self, repo: RepoRef, file: RemoteFile, limit_bytes: int, cache_dir: Path | None = None) -> Path:
        """Fetch one file at the pinned commit and check its bytes against the announced checksum.

        Args:
            repo: pinned repo.
            file: from `files`.
            limit_bytes: refused before the download when the announced size, or the body's, is larger.
            cache_dir: a `huggingface_hub` cache; default the user's own.

        Raises:
            LimitExceededError: too large.
            CorruptDownloadError: size or checksum differ after all tries.
            AccessDeniedError: gated, gone.
        """
        if file.size_bytes > limit_bytes:
            raise LimitExceededError(f"size of {file.path} in bytes", limit_bytes, file.size_bytes)

        def fetch() -> Path:
            with byte_limit(limit_bytes):
                local = Path(
                    hf_hub_download(
                        str(repo.repo_id),
                        file.path,
                        revision=repo.commit_sha,
                        cache_dir=cache_dir,
                        endpoint=self.endpoint,
                    )
                )
            try:
                _verify(local, file)
            except CorruptDownloadError:
                # The cache would hand out the same bad bytes again: remove the link and what it points to.
                local.resolve().unlink(missing_ok=True)
                local.unlink(missing_ok=True)
                raise
            return local

        return self._call(fetch)

    def _repo_ref(self, info: ModelInfo, target: str | None = None) -> RepoRef:
        # huggingface_hub keeps fields it does not know as attributes; `_id` is the identity that survives renames.
        uid = getattr(info, "_id", None) or f"name:{info.id}"
        return RepoRef(
            source=f"hub:{self.endpoint}",
            repo_id=info.id,
            repo_uid=str(uid),
            commit_sha=info.sha,
            owner=info.id.split("/")[0] if "/" in info.id else None,
            base_model=_claimed_base(info) or UNRESOLVED,
            created_at=_timestamp(info.created_at),
            last_modified=_timestamp(info.last_modified),
            gated=bool(info.gated),
            disabled=bool(info.disabled),
            target=target or info.id,
        )

    def _call(self, call: Callable[[], T]) -> T:
        return call_with_retries(lambda: _translated(call), self.settings)


def _translated(call: Callable[[], T]) -> T:
    """Run a `huggingface_hub` call so that only lorascope's errors come out of it."""
    try:
        return call()
    except (EntryNotFoundError, HfHubHTTPError) as error:
        raise _translate(error) from error
    except HFValidationError as error:
        raise AccessDeniedError(f"not a name on the Hub: {str(error)[:200]}") from error
    except OfflineModeIsEnabled as error:
        raise AccessDeniedError("HF_HUB_OFFLINE is set and the file is not in the cache") from error
    except httpx2.HTTPError as error:
        raise HubUnavailableError(f"{type(error).__name__}: {error}") from error
    except OSError as error:
        # huggingface_hub reports a body of the wrong length as a bare OSError.
        if "Consistency check failed" in str(error):
            raise CorruptDownloadError(str(error).splitlines()[0]) from error
        raise


def _translate(error: Exception) -> AccessDeniedError | HubUnavailableError:
    """401, 403 and 404 mean the same to an anonymous reader: not to be had (notes on the Hub's error table)."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    headers = getattr(response, "headers", {})
    detail = headers.get("X-Error-Message") or headers.get("X-Error-Code") or str(error).splitlines()[0]
    if status in (400, 401, 403, 404, 410, 451) or isinstance(error, EntryNotFoundError):
        return AccessDeniedError(f"the Hub refuses ({status}): {detail[:200]}")
    return HubUnavailableError(f"the Hub answered {status}: {detail[:200]}")


def _verify(local: Path, file: RemoteFile) -> None:
    size = local.stat().st_size
    if size != file.size_bytes:
        raise CorruptDownloadError(f"{file.path} has {size} bytes, the Hub announced {file.size_bytes}")
    if file.sha256:
        digest, wanted = hashlib.sha256(), file.sha256
    else:
        # A plain git file is known by its blob id: sha1 over a small header and the bytes.
        digest, wanted = (
            hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False),
            file.git_blob_sha1 or "",
        )
    with local.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != wanted:
        raise CorruptDownloadError(f"{file.path} has checksum {digest.hexdigest()}, the Hub announced {wanted}")

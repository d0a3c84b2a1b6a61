"""The Hub through `huggingface_hub`: listing, repo info, pinned and verified downloads."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from scanner.errors import CorruptDownloadError, LimitExceededError, TransientError, UsageError
from scanner.hub.http import byte_limit, install_client  # sets the environment first

from huggingface_hub import HfApi, ModelInfo, hf_hub_download  # isort: skip
from huggingface_hub.hf_api import RepoFile  # isort: skip

from scanner.hub.names import hub_id, related_bases, tagged_bases  # isort: skip
from scanner.hub.refusals import translated  # isort: skip
from scanner.hub.retry import call_with_retries, retry_delay_s  # isort: skip
from scanner.model import UNRESOLVED, BaseStep, RepoRef  # isort: skip
from scanner.settings import Settings, hub_endpoint  # isort: skip

__all__ = ["HubClient", "RemoteFile"]

T = TypeVar("T")

_EXPAND: list[Any] = [
    "sha", "createdAt", "lastModified", "tags", "library_name", "baseModels", "config", "siblings",
    "gated", "private", "disabled", "downloads", "likes",
]  # fmt: skip
MAX_ISSUES = 100
"""Files with issues of one repo that are taken from the Hub's own scan."""
_EXPAND_BASE: list[Any] = ["sha", "baseModels", "tags", "config", "gated"]


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


def _claimed_base(info: ModelInfo) -> BaseStep | None:
    """Base model as the listing tells it: the Hub's own field first, then the tags, then what the config claims."""
    relation, related = related_bases(getattr(info, "base_models", None))
    if related:
        others = f", the first of {len(related)}" if len(related) > 1 else ""
        return BaseStep("base_models", related[0], f"{relation[:40]}{others}")
    tags = tagged_bases(info.tags)
    if tagged := tags.get("adapter") or tags.get(""):
        return BaseStep("tag", tagged)
    config = info.config if isinstance(info.config, dict) else {}
    peft = config.get("peft")
    claimed = peft.get("base_model_name_or_path") if isinstance(peft, dict) else None
    return BaseStep("config", claimed) if isinstance(claimed, str) and hub_id(claimed) else None


class HubClient:
    """One endpoint. Every method raises only lorascope's errors; transient ones were already retried."""

    def __init__(self, settings: Settings, endpoint: str | None = None) -> None:
        self.endpoint = (endpoint or hub_endpoint()).rstrip("/")
        if not self.endpoint.startswith(("http://", "https://")):
            raise UsageError(f"the Hub's address {self.endpoint!r} must begin with http:// or https:// (HF_ENDPOINT)")
        self.settings = settings
        self.budget = install_client(self.endpoint, settings)
        self._api = HfApi(endpoint=self.endpoint)

    def ping(self) -> None:
        """One small request.

        Raises:
            HubUnreachableError: no connection.
            HubTokenError: the token is not accepted.
            TransientError: after all tries.
        """
        self.call(lambda: next(iter(self._api.list_models(limit=1)), None))

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
                while (info := translated(lambda pages=listing: next(pages, None))) is not None:  # type: ignore[misc]
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
        info = self.call(lambda: self._api.model_info(repo_id, revision=revision, expand=_EXPAND))
        target = f"{repo_id}@{revision}" if revision else repo_id
        return self._repo_ref(info, target=target)

    def base(self, repo_id: str) -> ModelInfo:
        """What the Hub knows of a base model: one request. Its `id` is another one where the Hub redirects.

        Raises:
            AccessDeniedError: no such repo, or no right to see it.
        """
        return self.call(lambda: self._api.model_info(repo_id, expand=_EXPAND_BASE))

    def security(self, repo: RepoRef) -> tuple[bool, tuple[tuple[str, str], ...]]:
        """What the Hub's own scanners say at the pinned commit: (whether they are done, (path, level) of each issue).
        One request.

        Raises:
            AccessDeniedError: gated, gone.
        """
        info = self.call(lambda: self._api.model_info(str(repo.repo_id), revision=repo.commit_sha, securityStatus=True))
        status = info.security_repo_status
        issues = status.get("filesWithIssues") if isinstance(status, dict) else None
        found = [
            (str(issue["path"])[:300], str(issue["level"])[:40])
            for issue in (issues if isinstance(issues, list) else [])[:MAX_ISSUES]
            if isinstance(issue, dict) and "path" in issue and "level" in issue
        ]
        return isinstance(status, dict) and status.get("scansDone") is True, tuple(found)

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

        return self.call(listing)

    def download(self, repo: RepoRef, file: RemoteFile, limit_bytes: int) -> Path:
        """Fetch one file at the pinned commit into the user's Hub cache and check its bytes.

        For what other programs share: base models. Adapters go through `scanner.hub.download`.

        Args:
            repo: pinned repo.
            file: from `files`.
            limit_bytes: refused before the download when the announced size, or the body's, is larger.

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

        return self.call(fetch)

    def _repo_ref(self, info: ModelInfo, target: str | None = None) -> RepoRef:
        # huggingface_hub keeps fields it does not know as attributes; `_id` is the identity that survives renames.
        uid = getattr(info, "_id", None) or f"name:{info.id}"
        siblings, base = info.siblings, _claimed_base(info)
        limit = self.settings.max_files_per_repo + 1  # one more shows that there are too many
        return RepoRef(
            source=f"hub:{self.endpoint}",
            repo_id=info.id,
            repo_uid=str(uid),
            commit_sha=info.sha,
            owner=info.id.split("/")[0] if "/" in info.id else None,
            base_model=base.value if base else UNRESOLVED,
            base_steps=(base,) if base else (),
            created_at=_timestamp(info.created_at),
            last_modified=_timestamp(info.last_modified),
            gated=bool(info.gated),
            disabled=bool(info.disabled),
            downloads=info.downloads,
            likes=info.likes,
            target=target or info.id,
            files=None if siblings is None else tuple(str(entry.rfilename) for entry in siblings[:limit]),
        )

    def call(self, call: Callable[[], T]) -> T:
        """Run a request under this client's retry policy; only lorascope's errors come out."""
        return call_with_retries(lambda: translated(call), self.settings)


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

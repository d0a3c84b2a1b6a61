"""Adapter files at a pinned commit: few requests, bytes bounded and hashed while they arrive, resumed when they break.

`huggingface_hub.hf_hub_download` asks for the headers of a file before the file (one to two requests more each),
checks only its size, and has no limit on the time that a body takes. This goes through the library's own session,
headers and addresses, and keeps what it fetched under the name of its content: the same bytes are fetched once,
whatever repo or commit they are in (docs/adr/0005).
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

from scanner.errors import AccessDeniedError, CorruptDownloadError, HubUnavailableError, LimitExceededError
from scanner.hub.http import byte_limit, httpx
from scanner.hub.refusals import refusal, translated

from huggingface_hub import constants, get_session  # isort: skip
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # isort: skip

__all__ = ["Announced", "Downloader"]

MAX_HOPS = 5
MAX_RESUMES = 2
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Announced:
    """What the Hub says of a file before its bytes come."""

    digest: str
    """sha256 of the bytes (64 hex digits) or, of files outside of LFS, their git blob's sha1 (40)."""
    size_bytes: int | None

    @property
    def sha256(self) -> str | None:
        """Of an LFS file."""
        return self.digest if len(self.digest) == 64 else None


@dataclass(frozen=True)
class _Opened:
    """Where a file's bytes are, once the redirects that stay on the Hub were followed."""

    announced: Announced
    url: str
    response: Any = None
    """The answer itself, where it holds the bytes already; to be closed."""


class Downloader:
    """Files of one endpoint, by content, below one folder."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        self._endpoint, self._folder = endpoint.rstrip("/"), folder
        self._announced: dict[tuple[str, str, str], _Opened] = {}

    def announce(self, repo_id: str, commit: str, name: str) -> Announced:
        """Checksum and size of a file: one request as a rule, no bytes. A `fetch` that follows goes on from there.

        Raises:
            AccessDeniedError: gated, gone.
            TransientError: to be tried again.
        """
        opened = self._open(repo_id, commit, name, 0)
        _close(opened)
        if opened.response is None:  # an address on another host, which stays good for a while
            self._announced[repo_id, commit, name] = opened
        return opened.announced

    def fetch(self, repo_id: str, commit: str, name: str, limit_bytes: int, *, is_small: bool = False) -> Path:
        """One file, verified.

        Args:
            repo_id: owner/name.
            commit: full sha.
            name: path inside the repo.
            limit_bytes: of the file.
            is_small: probably outside of LFS; then it is asked for where the Hub's redirect would lead, which saves
                a request. Where that place does not have it the ordinary address is asked.

        Raises:
            LimitExceededError: announced or found to be larger than `limit_bytes`.
            CorruptDownloadError: checksum or size differ from what was announced, or nothing was announced.
            AccessDeniedError: gated, gone.
            TransientError: to be tried again.
        """
        opened = self._announced.pop((repo_id, commit, name), None)
        if opened is None and is_small:
            try:
                opened = self._open(repo_id, commit, name, limit_bytes, direct=True)
            except AccessDeniedError as error:
                if error.code not in ("file_gone", "gone"):
                    raise
        opened = opened or self._open(repo_id, commit, name, limit_bytes)
        announced = opened.announced
        target = self._folder / announced.digest
        if target.exists():
            _close(opened)
            return target
        if announced.size_bytes is not None and announced.size_bytes > limit_bytes:
            _close(opened)
            raise LimitExceededError(f"size of {name} in bytes", limit_bytes, announced.size_bytes)
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"{announced.digest}.{uuid.uuid4().hex}.part"
        try:
            self._receive(opened, part, name, limit_bytes)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target

    def _open(self, repo_id: str, commit: str, name: str, limit: int, *, direct: bool = False) -> _Opened:
        """Follow the redirects within the Hub up to the bytes or to another host, and collect what is announced."""
        where = "/api/resolve-cache/models" if direct else ""
        middle = "" if direct else "/resolve"
        url = f"{self._endpoint}{where}/{repo_id}{middle}/{quote(commit, safe='')}/{quote(name)}"
        origin = httpx.URL(self._endpoint).netloc
        announced: Announced | None = None
        for _ in range(MAX_HOPS):
            response = _get(url, self._headers(), limit)
            announced = announced or _announced(response)
            status, location = response.status_code, response.headers.get("Location")
            if status in (301, 302, 303, 307, 308) and location:
                response.close()
                url = urljoin(url, location)
                if httpx.URL(url).netloc != origin:
                    if announced is None:
                        raise CorruptDownloadError(f"the Hub announces no checksum for {name}")
                    return _Opened(announced, url)
                continue
            if status >= 400:
                response.close()
                raise refusal(status, response.headers)
            if announced is None:
                response.close()
                raise CorruptDownloadError(f"the Hub announces no checksum for {name}")
            return _Opened(announced, url, response)
        raise HubUnavailableError(f"the Hub redirects more than {MAX_HOPS} times for {name}")

    def _headers(self) -> dict[str, str]:
        headers = build_hf_headers(library_name="lorascope")
        return {str(key): str(value) for key, value in headers.items()}

    def _receive(self, opened: _Opened, part: Path, name: str, limit_bytes: int) -> None:
        """Bytes into `part`; a body that breaks goes on where it broke, as often as it makes headway."""
        announced, response = opened.announced, opened.response
        is_foreign = response is None
        # A plain git file is known by its blob id: sha1 over a small header and the bytes.
        digest = _Digest(announced, part)
        for attempt in range(MAX_RESUMES + 1):
            before = digest.size
            if response is None:
                headers = {} if is_foreign else self._headers()
                if digest.size:
                    headers["Range"] = f"bytes={digest.size}-"
                response = _get(opened.url, headers, limit_bytes)
                if response.status_code >= 400:
                    response.close()
                    raise refusal(response.status_code, response.headers)
                if digest.size and not _continues(response, digest.size):
                    digest.restart()  # the whole file again: the range was ignored
                    before = 0
            try:
                _copy(response, digest, name, limit_bytes)
                break
            except httpx.TransportError as error:
                if attempt == MAX_RESUMES or digest.size == before:
                    raise HubUnavailableError(f"{name}: {type(error).__name__} after {digest.size} bytes") from error
            finally:
                response.close()
                response = None
        digest.check(name)


class _Digest:
    """The file on disk with its running checksum."""

    def __init__(self, announced: Announced, part: Path) -> None:
        self._announced, self._part = announced, part
        self.restart()

    def restart(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._part.write_bytes(b"")

    def add(self, chunk: bytes) -> None:
        with self._part.open("ab") as stream:
            stream.write(chunk)
        self._sha256.update(chunk)
        self.size += len(chunk)

    def check(self, name: str) -> None:
        wanted, size = self._announced.digest, self._announced.size_bytes
        if size is not None and size != self.size:
            raise CorruptDownloadError(f"{name} has {self.size} bytes, the Hub announced {size}")
        if len(wanted) == 64:
            found = self._sha256.hexdigest()
        else:
            header = f"blob {self.size}\0".encode()
            found = hashlib.sha1(header + self._part.read_bytes(), usedforsecurity=False).hexdigest()
        if found != wanted:
            raise CorruptDownloadError(f"{name} has checksum {found}, the Hub announced {wanted}")


def _get(url: str, headers: dict[str, str], limit: int) -> Any:
    """One request of the shared session, no redirects followed, the body not read yet."""
    session = get_session()

    def send() -> Any:
        request = session.build_request("GET", url, headers=headers)
        with byte_limit(limit or constants.DOWNLOAD_CHUNK_SIZE):
            return session.send(request, stream=True, follow_redirects=False)

    return translated(send)


def _close(opened: _Opened) -> None:
    if opened.response is not None:
        opened.response.close()


def _copy(response: Any, digest: _Digest, name: str, limit_bytes: int) -> None:
    for chunk in response.iter_raw():  # as it comes: a size asked for here would lose what came before a break
        if digest.size + len(chunk) > limit_bytes:
            raise LimitExceededError(f"size of {name} in bytes", limit_bytes, digest.size + len(chunk))
        digest.add(chunk)


def _continues(response: Any, start: int) -> bool:
    if response.status_code != 206:
        return False
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-")


def _announced(response: Any) -> Announced | None:
    """From `X-Linked-ETag` and `X-Linked-Size`, or from the ETag and length of an answer that holds the bytes."""
    headers = response.headers
    is_body = response.status_code in (200, 206)
    etag = headers.get("X-Linked-ETag") or (headers.get("ETag") if is_body else None) or ""
    digest = etag.removeprefix("W/").strip('"').lower()
    if len(digest) not in (40, 64) or not set(digest) <= _HEX:
        return None
    size = headers.get("X-Linked-Size") or (headers.get("Content-Length") if is_body else None) or ""
    return Announced(digest, int(size) if size.isascii() and size.isdigit() and len(size) < 16 else None)

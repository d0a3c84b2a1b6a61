"""File content: the resolve redirects, the small-file cache route, and the CDN on its own origin."""

from __future__ import annotations

import hashlib
import hmac
import mimetypes
import secrets
import time
from pathlib import Path
from urllib.parse import quote, unquote, urlencode

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response

from scanner.hub.server.answers import entry_not_found, repo_not_found
from scanner.hub.server.api import asked_name, param, require_commit, require_content
from scanner.hub.server.blobs import FileEntry
from scanner.hub.server.repos import HubFolder, RepoSnapshot

_SIGNED_FOR_S = 3600
_LOOPBACK = {"127.0.0.1": "localhost", "localhost": "127.0.0.1", "::1": "localhost", "[::1]": "localhost"}


class _BlobResponse(FileResponse):
    chunk_size = 1 << 20  # weights are large: fewer, longer reads


class SignedUrls:
    """CDN addresses. Whoever holds one may fetch the file until it expires; nobody can make one up.

    The CDN sees no token (clients drop it when they change hosts), so the signature is what keeps gated and
    private files closed.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self._secret = secrets.token_bytes(32)

    def make(self, request: Request, repo: RepoSnapshot, entry: FileEntry) -> str:
        # The client follows redirects and keeps its headers within one host name, whatever the port: like the
        # real CDN, this one has to answer to another name.
        asked_host = request.url.hostname or "127.0.0.1"
        host = _LOOPBACK.get(asked_host, asked_host)
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        path = f"/{repo.id}/{entry.sha256}/{entry.path}"
        expires = str(int(time.time()) + _SIGNED_FOR_S)
        query = urlencode({"Expires": expires, "Signature": self._sign(path, expires)})
        return f"{request.url.scheme}://{host}:{self.port}{quote(path)}?{query}"

    def is_valid(self, request: Request) -> bool:
        expires = request.query_params.get("Expires", "")
        signature = request.query_params.get("Signature", "")
        if not expires.isascii() or not expires.isdigit() or len(expires) > 12 or int(expires) < time.time():
            return False
        return hmac.compare_digest(self._sign(unquote(request.url.path), expires).encode(), signature.encode())

    def _sign(self, path: str, expires: str) -> str:
        return hmac.new(self._secret, f"{path}\n{expires}".encode(), hashlib.sha256).hexdigest()


def resolve(folder: HubFolder, urls: SignedUrls, request: Request) -> Response:
    """`/{id}/resolve/{revision}/{path}`: where the bytes are, and what they must hash to."""
    repo = require_commit(folder, request)
    require_content(repo, request)
    entry = _current_entry(folder, repo, param(request, "path"))
    headers = {
        "X-Repo-Commit": repo.sha,
        "X-Linked-Size": str(entry.size),
        "X-Linked-ETag": f'"{entry.etag}"',
        "Accept-Ranges": "bytes",
        "Access-Control-Expose-Headers": "X-Repo-Commit,X-Linked-Size,X-Linked-ETag,ETag,Location,Link,RateLimit",
    }
    if entry.sha256 is not None:
        return RedirectResponse(urls.make(request, repo, entry), 302, headers)
    cached = f"/api/resolve-cache/models/{repo.id}/{repo.sha}/{quote(entry.path)}"
    query = urlencode({request.url.path: "", "etag": f'"{entry.etag}"'}, quote_via=quote, safe="")
    return RedirectResponse(f"{cached}?{query}", 307, headers)


def resolve_cache(folder: HubFolder, request: Request) -> Response:
    """The content of a small file at one commit."""
    repo = require_commit(folder, request)
    require_content(repo, request)
    entry = _current_entry(folder, repo, param(request, "path"))
    if entry.sha256 is not None:
        raise entry_not_found(repo.sha)
    headers = {
        "ETag": f'"{entry.etag}"',
        "X-Repo-Commit": repo.sha,
        "X-Linked-Size": str(entry.size),
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(Path(entry.path).name)}",
    }
    return _BlobResponse(entry.disk, headers=headers, media_type=_media_type(entry.path))


def cdn_blob(folder: HubFolder, urls: SignedUrls, request: Request) -> Response:
    """`/{id}/{sha256}/{path}` on the CDN. Its ETag says nothing about the hash, as on the real one."""
    if not urls.is_valid(request):
        return PlainTextResponse("The address is not signed, or its signature has expired.", 403)
    repo = folder.find(asked_name(request))
    if repo is None:
        raise repo_not_found()
    path, sha256 = param(request, "path"), param(request, "sha256")
    entry = repo.by_path.get(path)
    if entry is None or entry.sha256 != sha256:
        old = [commit.by_path[path] for commit in folder.commits(repo.id) if path in commit.by_path]
        kept = (folder.kept(repo.id, former) for former in old if former.sha256 == sha256)
        entry = next((one for one in kept if one is not None), None)
    if entry is None:
        raise entry_not_found(repo.sha)
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(Path(entry.path).name)}"}
    return _BlobResponse(entry.disk, headers=headers, media_type="application/octet-stream")


def _current_entry(folder: HubFolder, repo: RepoSnapshot, path: str) -> FileEntry:
    """The file of a commit, provided that the disk still holds that very content: in its place, or kept aside."""
    wanted = repo.by_path.get(path)
    if wanted is None:
        raise entry_not_found(repo.sha)
    head = folder.find(repo.id)
    current = head.by_path.get(path) if head is not None else None
    if current is not None and current.blob_id == wanted.blob_id:
        return current
    kept = folder.kept(repo.id, wanted)
    if kept is None:
        raise entry_not_found(repo.sha)
    return kept


def _media_type(path: str) -> str:
    # Never a type that a browser would run: the content is somebody else's.
    guessed = mimetypes.guess_type(path)[0] or ""
    return "application/json" if guessed == "application/json" else "text/plain"

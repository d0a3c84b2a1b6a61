"""Errors and JSON answers in the Hub's form."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from scanner.hub.server.cards import JsonObject


class HubError(Exception):
    """An answer that is not the thing asked for. `code` is what the real client tells error classes by."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}


def repo_not_found() -> HubError:
    # The site answers a bare 401 to anonymous clients; over plain http the client would not recognise that.
    return HubError(404, "Repository not found", "RepoNotFound")


def revision_not_found(revision: str) -> HubError:
    return HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def entry_not_found(commit_sha: str) -> HubError:
    return HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit_sha, "Accept-Ranges": "bytes"})


def gated_repo(repo_id: str, *, has_token: bool) -> HubError:
    if has_token:
        return HubError(403, f"Access to model {repo_id} is restricted: this token is not on its list.", "GatedRepo")
    return HubError(
        401,
        f"Access to model {repo_id} is restricted. You must have access to it and be authenticated to access it. "
        "Please log in.",
        "GatedRepo",
        {"WWW-Authenticate": 'Bearer realm="Authentication required", charset="UTF-8"'},
    )


def disabled_repo() -> HubError:
    return HubError(403, "Access to this resource is disabled.")  # the client compares this sentence


def error_answer(request: Request, error: Exception) -> Response:
    """JSON under /api, plain text for file addresses."""
    assert isinstance(error, HubError)
    message = error.message.encode("utf-8", "replace").decode()
    headers = {"X-Error-Message": header_text(message)} | error.headers
    if error.code is not None:
        headers["X-Error-Code"] = error.code
    return plain_error(request.url.path, error.status, message, headers)


def plain_error(path: str, status: int, message: str, headers: dict[str, str]) -> Response:
    if path.startswith(("/api/", "/_hub/")) and not path.startswith("/api/resolve-cache/"):
        return JSONResponse({"error": message}, status, headers)
    return PlainTextResponse(message, status, headers)


def header_text(text: str) -> str:
    """What of a text may stand in a header: printable ASCII, so that no line break can start another header."""
    return re.sub(r"[^\x20-\x7e]", "?", text)[:500]


def has_token(request: Request) -> bool:
    return request.headers.get("authorization", "").lower().startswith("bearer ")


def json_answer(content: JsonObject | list[JsonObject], headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(content, headers=headers)

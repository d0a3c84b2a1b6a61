"""Who asks: tokens, and how the site words its refusals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from scanner.hub.server.answers import HubError, error_answer, has_token, plain_error

BAD_TOKEN = "Invalid credentials in Authorization header"
NO_LOGIN = "Invalid username or password."


@dataclass(frozen=True)
class Access:
    """What a hub makes of tokens and of who has none."""

    tokens: Mapping[str, str] = field(default_factory=dict)
    """Token -> role (read, write, fineGrained). Empty: every token is somebody's, with role read."""
    strict_errors: bool = False
    """Tell an anonymous client of a missing or private repo what the site tells it: a bare 401. The real client
    recognises that only over https, so the friendly form is the default."""

    def guarded(self, app: ASGIApp) -> ASGIApp:
        """An application that refuses tokens which are nobody's, whatever they ask for."""

        async def check(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and (token := _token(Request(scope))) and self.tokens and not self._role(token):
                refused = plain_error(scope["path"], 401, BAD_TOKEN, {"X-Error-Message": BAD_TOKEN})
                await refused(scope, receive, send)
                return
            await app(scope, receive, send)

        return check

    def whoami(self, request: Request) -> Response:
        """`/api/whoami-v2`: the account behind a token, with the token's role."""
        token = _token(request)
        if not token:
            raise HubError(401, NO_LOGIN)
        access = {"displayName": "local", "role": self._role(token), "createdAt": "2026-01-01T00:00:00.000Z"}
        return JSONResponse(
            {
                "type": "user",
                "id": "0" * 24,
                "name": "local-user",
                "fullname": "Local User",
                "email": None,
                "emailVerified": False,
                "isPro": False,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": access},
            }
        )

    def error_answer(self, request: Request, error: Exception) -> Response:
        """As `answers.error_answer`, in the site's own words where that is asked for."""
        is_missing = isinstance(error, HubError) and error.code == "RepoNotFound"
        if self.strict_errors and is_missing and not has_token(request):
            error = HubError(401, NO_LOGIN)
        return error_answer(request, error)

    def _role(self, token: str) -> str | None:
        return self.tokens.get(token) if self.tokens else "read"


def _token(request: Request) -> str:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""

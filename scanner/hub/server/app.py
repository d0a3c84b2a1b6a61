"""The two ASGI applications: the API with the file addresses, and the CDN."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from scanner.errors import UsageError
from scanner.hub.server import api, files
from scanner.hub.server.access import Access
from scanner.hub.server.answers import HubError, plain_error
from scanner.hub.server.api import MovedError, moved_answer
from scanner.hub.server.faults import FaultBoard, faults_of, parse_faults
from scanner.hub.server.files import SignedUrls
from scanner.hub.server.gate import FAULTS_PATH
from scanner.hub.server.listing import MAX_PAGE, list_models
from scanner.hub.server.repos import HubFolder
from scanner.hub.server.script import Script, parse_script, script_of

_MAX_FAULTS_BYTES = 1 << 20
Endpoint = Callable[[Request], Response | Awaitable[Response]]


def api_app(
    folder: HubFolder,
    urls: SignedUrls,
    board: tuple[FaultBoard, Script] | None,
    access: Access,
    max_page: int = MAX_PAGE,
) -> ASGIApp:
    """`board` also offers faults and script over HTTP; None leaves that door out."""
    model = "/api/models"
    cache = "/api/resolve-cache/models"
    routes: list[BaseRoute] = [
        Route(model, partial(list_models, folder, max_page)),
        Route("/api/whoami-v2", access.whoami),
        *(
            Route(f"{model}/{{name}}/{word}", partial(api.get_of_single_name, folder, word))
            for word in ("refs", "scan")
        ),
        *_named(model, "", partial(api.get_model, folder)),
        *_named(model, "/revision/{revision}", partial(api.get_model, folder)),
        *_named(model, "/tree/{revision}", partial(api.get_tree, folder)),
        *_named(model, "/tree/{revision}/{path:path}", partial(api.get_tree, folder)),
        *_named(model, "/paths-info/{revision}", partial(api.post_paths_info, folder), "POST"),
        *_named(model, "/commits/{revision}", partial(api.get_commits, folder)),
        Route(f"{model}/{{owner}}/{{name}}/refs", partial(api.get_refs, folder)),
        Route(f"{model}/{{owner}}/{{name}}/scan", partial(api.get_scan, folder)),
        *_named(cache, "/{revision}/{path:path}", partial(files.resolve_cache, folder)),
        *_named("", "/resolve/{revision}/{path:path}", partial(files.resolve, folder, urls)),
    ]
    if board is not None:
        methods = ["GET", "POST", "DELETE"]
        routes.insert(0, Route(FAULTS_PATH, partial(_control_faults, folder, *board), methods=methods))
    return access.guarded(_app(routes, access))


def cdn_app(folder: HubFolder, urls: SignedUrls) -> Starlette:
    blob = partial(files.cdn_blob, folder, urls)
    return _app([Route("/{owner}/{name}/{sha256}/{path:path}", blob)], Access())


def _app(routes: list[BaseRoute], access: Access) -> Starlette:
    app = Starlette(
        routes=routes,
        exception_handlers={
            HubError: access.error_answer,
            MovedError: moved_answer,
            HTTPException: _http_error,
        },
    )
    app.router.redirect_slashes = False
    return app


def _named(prefix: str, suffix: str, endpoint: Endpoint, method: str = "GET") -> list[BaseRoute]:
    """`owner/name`, and the single names of old: those can only be former names."""
    return [
        Route(f"{prefix}/{{owner}}/{{name}}{suffix}", endpoint, methods=[method]),
        Route(f"{prefix}/{{name}}{suffix}", endpoint, methods=[method]),
    ]


def _http_error(request: Request, error: Exception) -> Response:
    """No such address, or not with this method."""
    assert isinstance(error, HTTPException)
    return plain_error(request.url.path, error.status_code, error.detail, dict(error.headers or {}))


async def _control_faults(folder: HubFolder, faults: FaultBoard, script: Script, request: Request) -> Response:
    if request.method == "DELETE":
        faults.clear()
        script.clear()
    elif request.method == "POST":
        try:
            body = await request.body()
            if len(body) > _MAX_FAULTS_BYTES:
                raise UsageError("too many faults at once")
            raw = json.loads(body)
            added = parse_faults(faults_of(raw))
            parse_script(script_of(raw), folder.directory, script)
        except (UsageError, ValueError, RecursionError) as error:
            raise HubError(400, str(error)) from None
        for fault in added:
            faults.add(fault)
    return JSONResponse(faults.to_json())

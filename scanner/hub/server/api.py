"""The routes under /api/models/{id}."""

from __future__ import annotations

from urllib.parse import parse_qs, unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from scanner.hub.server.answers import (
    HubError,
    disabled_repo,
    entry_not_found,
    gated_repo,
    has_token,
    json_answer,
    repo_not_found,
    revision_not_found,
)
from scanner.hub.server.cards import JsonObject
from scanner.hub.server.listing import expand_names
from scanner.hub.server.paging import Cursor, decode_cursor, flag, next_link, page_size
from scanner.hub.server.repos import BRANCH, HubFolder, RepoSnapshot
from scanner.hub.server.settings import iso_time
from scanner.hub.server.shapes import (
    commit_title,
    expanded_model,
    file_info,
    folder_info,
    model_info,
    security_status,
)

_PREFIXES = ("/api/models/", "/api/resolve-cache/models/", "/")
_MAX_BODY_BYTES = 1 << 20
_TREE_PAGE, _TREE_PAGE_EXPANDED = 1000, 100
_COMMITS_PAGE, _COMMITS_MAX = 50, 1000


class MovedError(Exception):
    """The repo answers to another name now. `location` is relative, as the Hub sends it."""

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.location = location


def moved_answer(_: Request, error: Exception) -> Response:
    assert isinstance(error, MovedError)
    return RedirectResponse(error.location, 307)


def param(request: Request, name: str, default: str = "") -> str:
    """A part of the address, decoded exactly once. (Routing works on the undecoded path: `refs%2Fpr%2F1`.)"""
    return unquote(request.path_params.get(name, default), errors="replace")


def asked_name(request: Request) -> str:
    owner = param(request, "owner")
    return f"{owner}/{param(request, 'name')}" if owner else param(request, "name")


def require_repo(folder: HubFolder, request: Request) -> RepoSnapshot:
    """The repo in the address. A former name, or one in other letters, is a redirect."""
    asked = asked_name(request)
    repo = folder.find(asked)
    if repo is not None and (has_token(request) or not repo.settings.private):
        return repo
    other = folder.find_by_any_name(asked) if repo is None else None
    if other is None or (other.settings.private and not has_token(request)):
        raise repo_not_found()
    raise MovedError(_moved_location(request, other.id))


def _moved_location(request: Request, new_id: str) -> str:
    asked = "/".join(request.path_params[key] for key in ("owner", "name") if key in request.path_params)
    path = request.url.path
    prefix = next(start for start in _PREFIXES if path.startswith(start + asked))
    location = f"{prefix}{new_id}{path[len(prefix + asked) :]}"
    return f"{location}?{request.url.query}" if request.url.query else location


def require_commit(folder: HubFolder, request: Request) -> RepoSnapshot:
    head = require_repo(folder, request)
    revision = param(request, "revision", BRANCH)
    commit = folder.at(head, revision)
    if commit is None:
        raise revision_not_found(revision)
    return commit


def require_content(repo: RepoSnapshot, request: Request) -> None:
    """Names and sizes of a gated repo are public; what is in its files, and its history, is not."""
    if repo.settings.disabled:
        raise disabled_repo()
    if repo.settings.gated is not False:
        raise gated_repo(repo.id, has_token=has_token(request))


def get_model(folder: HubFolder, request: Request) -> Response:
    names = expand_names(request)
    repo = require_commit(folder, request)
    if names:
        return json_answer(expanded_model(repo, names, folder.scan))
    blobs, security = flag(request, "blobs"), flag(request, "securityStatus")
    return json_answer(model_info(repo, folder.scan, blobs=blobs, security=security))


def get_tree(folder: HubFolder, request: Request) -> Response:
    repo = require_commit(folder, request)
    if repo.settings.disabled:
        raise disabled_repo()
    expand, recursive = flag(request, "expand"), flag(request, "recursive")
    base = param(request, "path").strip("/")
    prefix = f"{base}/" if base else ""
    files = [entry for entry in repo.files if entry.path.startswith(prefix)]
    if base and not files:
        raise entry_not_found(repo.sha)
    folders: set[str] = set()
    for entry in files:
        parts = entry.path[len(prefix) :].split("/")[:-1]
        depth = len(parts) if recursive else 1
        folders |= {prefix + "/".join(parts[: count + 1]) for count in range(min(depth, len(parts)))}
    shown = sorted(folders | {entry.path for entry in files if recursive or "/" not in entry.path[len(prefix) :]})
    if "cursor" in request.query_params:
        after = str(decode_cursor(request.query_params["cursor"], "path").value)
        shown = [path for path in shown if path > after]
    default = _TREE_PAGE_EXPANDED if expand else _TREE_PAGE
    limit = page_size(request, default, default)
    page = shown[:limit]
    headers = {}
    if len(shown) > limit:
        headers = next_link(request, cursor=Cursor("path", page[-1], repo.sha).encode())
    return json_answer([_path_info(repo, path, expand=expand) for path in page], headers)


async def post_paths_info(folder: HubFolder, request: Request) -> Response:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise HubError(413, "The list of paths is too long")
    form = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    return await run_in_threadpool(_paths_info, folder, request, form)


def _paths_info(folder: HubFolder, request: Request, form: dict[str, list[str]]) -> Response:
    repo = require_commit(folder, request)
    if repo.settings.disabled:
        raise disabled_repo()
    expand = form.get("expand", [""])[0].lower() == "true"
    paths = dict.fromkeys(path.strip("/") for path in form.get("paths", []))
    infos = [_path_info(repo, path, expand=expand) for path in paths if _exists(repo, path)]
    return json_answer(infos)


def get_commits(folder: HubFolder, request: Request) -> Response:
    repo = require_commit(folder, request)
    require_content(repo, request)
    history = list(folder.commits(repo.id))
    start = next((at for at, commit in enumerate(history) if commit.sha == repo.sha), 0)
    reachable = history[start:]
    limit = page_size(request, _COMMITS_PAGE, _COMMITS_MAX)
    page_text = request.query_params.get("p", "0")
    if not page_text.isascii() or not page_text.isdigit() or len(page_text) > 9:
        raise HubError(400, "p must be a whole number")
    page = int(page_text)
    headers = {"X-Total-Count": str(len(reachable))}
    if (page + 1) * limit < len(reachable):
        headers |= next_link(request, p=str(page + 1))
    items: list[JsonObject] = [
        {
            "id": commit.sha,
            "title": commit_title(commit),
            "message": "",
            "authors": [{"user": commit.author, "avatar": ""}],
            "date": iso_time(commit.last_modified_ms),
        }
        for commit in reachable[page * limit : (page + 1) * limit]
    ]
    return json_answer(items, headers)


def get_refs(folder: HubFolder, request: Request) -> Response:
    repo = require_repo(folder, request)
    branch: JsonObject = {"name": BRANCH, "ref": f"refs/heads/{BRANCH}", "targetCommit": repo.sha}
    refs: JsonObject = {"branches": [branch], "tags": [], "converts": []}
    if flag(request, "include_prs"):
        refs["pullRequests"] = []
    return json_answer(refs)


def get_scan(folder: HubFolder, request: Request) -> Response:
    return json_answer(security_status(require_repo(folder, request)))


def get_of_single_name(folder: HubFolder, word: str, request: Request) -> Response:
    """`/api/models/legacy/refs`: of the repo `legacy`, unless somebody has a repo of just that name."""
    name = param(request, "name")
    if folder.find(f"{name}/{word}") is not None:
        request.scope["path_params"] = {"owner": name, "name": word}
        return get_model(folder, request)
    return {"refs": get_refs, "scan": get_scan}[word](folder, request)


def _path_info(repo: RepoSnapshot, path: str, *, expand: bool) -> JsonObject:
    entry = repo.by_path.get(path)
    if entry is None:
        return folder_info(path, repo, expand=expand)
    return file_info(entry, repo, expand=expand)


def _exists(repo: RepoSnapshot, path: str) -> bool:
    return path in repo.by_path or any(entry.path.startswith(f"{path}/") for entry in repo.files)

"""GET /api/models: filters, order, pages."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from scanner.hub.server.answers import HubError, has_token, json_answer
from scanner.hub.server.paging import Cursor, decode_cursor, flag, next_link, page_size
from scanner.hub.server.repos import HubFolder, RepoSnapshot
from scanner.hub.server.shapes import EXPAND_FIELDS, expanded_model, listed_model

MAX_PAGE = 1000
# A crawl asks for its pages in a row: later ones need not look at every file of the folder again. (Changes made by
# `actions` are seen at once all the same.)
_LATER_PAGE_MAX_AGE_S = 5.0

_SORTS: dict[str, Callable[[RepoSnapshot], float]] = {
    "createdAt": lambda repo: repo.created_ms,
    "lastModified": lambda repo: repo.last_modified_ms,
    "downloads": lambda repo: repo.settings.downloads,
    "likes": lambda repo: repo.settings.likes,
    "trendingScore": lambda repo: repo.settings.trending_score,
}


def list_models(folder: HubFolder, max_page: int, request: Request) -> Response:
    query = request.query_params
    sort = query.get("sort", "trendingScore")
    if sort not in _SORTS:
        raise HubError(400, f"sort must be one of: {', '.join(_SORTS)}")
    expand = expand_names(request)
    limit = page_size(request, max_page, max_page)
    after = decode_cursor(query["cursor"], sort) if "cursor" in query else None
    if after is not None and isinstance(after.value, str):
        raise HubError(400, "Invalid cursor")

    scan = folder.scan(_LATER_PAGE_MAX_AGE_S if after is not None else 0.0)
    value = _SORTS[sort]

    def place(repo: RepoSnapshot) -> tuple[float, str]:
        return (-value(repo), repo.uid)

    matching = _matcher(request)
    found = [repo for repo in scan.repos if matching(repo)]
    if after is not None:
        behind = (-float(after.value), after.uid)
        found = [repo for repo in found if place(repo) > behind]
    found.sort(key=place)
    page, has_more = found[:limit], len(found) > limit

    headers = {}
    if has_more:
        headers = next_link(request, cursor=Cursor(sort, value(page[-1]), page[-1].uid).encode())
    if expand:
        return json_answer([expanded_model(repo, expand, lambda: scan) for repo in page], headers)
    extra = [name for name in ("cardData", "config") if flag(request, name)]
    full = flag(request, "full")
    return json_answer([listed_model(repo, lambda: scan, full=full, extra=extra) for repo in page], headers)


def expand_names(request: Request) -> list[str]:
    """The values of `expand=` and `expand[]=`, each of them known."""
    names = request.query_params.getlist("expand") + request.query_params.getlist("expand[]")
    if unknown := [name for name in names if name not in EXPAND_FIELDS]:
        valid = ", ".join(EXPAND_FIELDS)
        raise HubError(400, f"Unknown expand value {unknown[0]!r}. Valid values: {valid}")
    return names


def _matcher(request: Request) -> Callable[[RepoSnapshot], bool]:
    query = request.query_params
    marks = {mark for name in ("filter", "filter[]") for mark in query.getlist(name)}
    words = query.get("search", "").lower().split()
    author, pipeline, gated = query.get("author"), query.get("pipeline_tag"), query.get("gated")
    sees_private = has_token(request)

    def matches(repo: RepoSnapshot) -> bool:
        if repo.settings.private and not sees_private:
            return False
        if not marks <= repo.marks:
            return False
        if author is not None and repo.author.lower() != author.lower():
            return False
        if pipeline is not None and repo.card.pipeline_tag != pipeline:
            return False
        if gated is not None and (repo.settings.gated is not False) != (gated.lower() == "true"):
            return False
        name = repo.id.lower()
        return all(word in name for word in words)

    return matches

"""The JSON shapes of the Hub's API: a model, its files, its folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from scanner.hub.server.blobs import FileEntry, tree_id
from scanner.hub.server.cards import JsonObject
from scanner.hub.server.repos import RepoSnapshot, Scan
from scanner.hub.server.settings import iso_time

GetScan = Callable[[], Scan]
"""Looks at the whole folder; called only for the fields that need the neighbours."""

# fmt: off
EXPAND_FIELDS = (
    "author", "baseModels", "cardData", "childrenModelCount", "config", "createdAt", "disabled",
    "downloads", "downloadsAllTime", "evalResults", "gated", "gguf", "inference",
    "inferenceProviderMapping", "lastModified", "library_name", "likes", "mask_token", "model-index",
    "pipeline_tag", "private", "resourceGroup", "safetensors", "sha", "siblings", "spaces", "tags",
    "transformersInfo", "trendingScore", "usedStorage", "widgetData", "xetEnabled",
)
_LISTED = (
    "likes", "trendingScore", "private", "downloads", "tags", "pipeline_tag", "library_name",
    "createdAt",
)
_LISTED_FULL = (
    "author", "sha", "lastModified", "gated", "disabled", "siblings",
)
_INFO = (
    "author", "sha", "createdAt", "lastModified", "private", "gated", "disabled", "tags",
    "library_name", "pipeline_tag", "downloads", "likes", "trendingScore", "cardData", "config",
    "model-index", "siblings", "spaces", "usedStorage",
)
# fmt: on


def expanded_model(repo: RepoSnapshot, names: Iterable[str], scan: GetScan) -> JsonObject:
    """`{_id, id}` and exactly the fields asked for, as far as they are known."""
    return {"_id": repo.uid, "id": repo.id} | _fields(repo, names, scan)


def listed_model(repo: RepoSnapshot, scan: GetScan, *, full: bool, extra: Iterable[str]) -> JsonObject:
    """One item of a listing that asked for no particular fields."""
    names = [*_LISTED, *(_LISTED_FULL if full else []), *extra]
    return {"_id": repo.uid, "id": repo.id, "modelId": repo.id} | _fields(repo, names, scan)


def model_info(repo: RepoSnapshot, scan: GetScan, *, blobs: bool, security: bool) -> JsonObject:
    info: JsonObject = {"_id": repo.uid, "id": repo.id, "modelId": repo.id} | _fields(repo, _INFO, scan)
    if blobs:
        info["siblings"] = [_blob_sibling(entry) for entry in repo.files]
    if security:
        info["securityRepoStatus"] = security_status(repo)
    return info


def security_status(repo: RepoSnapshot) -> JsonObject:
    """This hub scans nothing, and says so, unless `.hub.json` carries a result."""
    issues = repo.settings.issues
    listed = [{"path": path, "level": level} for path, level in issues or ()]
    return {"scansDone": issues is not None, "filesWithIssues": listed}


def file_info(entry: FileEntry, repo: RepoSnapshot, *, expand: bool) -> JsonObject:
    """A file as the tree and paths-info routes tell it."""
    info: JsonObject = {"type": "file", "oid": entry.blob_id, "size": entry.size, "path": entry.path}
    if entry.sha256 is not None:
        info["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    if expand:
        issues = repo.settings.issues
        status = "unscanned" if issues is None else dict(issues).get(entry.path, "safe")
        unscanned = {"status": "unscanned"}
        info["lastCommit"] = _last_commit(repo)
        info["securityFileStatus"] = {
            "status": status,
            "jFrogScan": unscanned,
            "protectAiScan": unscanned,
            "avScan": unscanned,
            "pickleImportScan": unscanned | {"pickleImports": []},
            "virusTotalScan": unscanned,
        }
    return info


def folder_info(path: str, repo: RepoSnapshot, *, expand: bool) -> JsonObject:
    inside = [entry for entry in repo.files if entry.path.startswith(f"{path}/")]
    info: JsonObject = {"type": "directory", "oid": tree_id(inside), "size": 0, "path": path}
    return info | ({"lastCommit": _last_commit(repo)} if expand else {})


def _last_commit(repo: RepoSnapshot) -> JsonObject:
    return {"id": repo.sha, "title": commit_title(repo), "date": iso_time(repo.last_modified_ms)}


def commit_title(repo: RepoSnapshot) -> str:
    return f"{len(repo.files)} files on disk" if len(repo.files) != 1 else "1 file on disk"


def _blob_sibling(entry: FileEntry) -> JsonObject:
    sibling: JsonObject = {"rfilename": entry.path, "size": entry.size, "blobId": entry.blob_id}
    if entry.sha256 is not None:
        sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return sibling


def _fields(repo: RepoSnapshot, names: Iterable[str], scan: GetScan) -> JsonObject:
    """Fields without a value are left out, as on the Hub: absent, never null."""
    values = {name: _FIELDS[name](repo, scan) for name in names if name in _FIELDS}
    return {name: value for name, value in values.items() if value is not None}


def _base_models(repo: RepoSnapshot, scan: GetScan) -> JsonObject | None:
    if not repo.card.base_ids:
        return None
    models: list[JsonObject] = []
    for base_id in repo.card.base_ids:
        base = scan().by_name.get(base_id.lower())
        # A base that is not on this hub has a name here but no identity.
        models.append({"id": base_id} if base is None else {"_id": base.uid, "id": base.id})
    return {"relation": repo.card.relation, "models": models}


def _children(repo: RepoSnapshot, scan: GetScan) -> JsonObject:
    counts = scan().children
    return {name: counts[repo.uid, name] for name in ("adapter", "merge", "quantized", "finetune")}


_FIELDS: dict[str, Callable[[RepoSnapshot, GetScan], Any]] = {
    "author": lambda repo, _: repo.author,
    "baseModels": _base_models,
    "cardData": lambda repo, _: repo.card.data,
    "childrenModelCount": _children,
    "config": lambda repo, _: repo.card.config,
    "createdAt": lambda repo, _: iso_time(repo.created_ms),
    "disabled": lambda repo, _: repo.settings.disabled,
    "downloads": lambda repo, _: repo.settings.downloads,
    "downloadsAllTime": lambda repo, _: (
        repo.settings.downloads if repo.settings.downloads_all_time is None else repo.settings.downloads_all_time
    ),
    "gated": lambda repo, _: repo.settings.gated,
    "lastModified": lambda repo, _: iso_time(repo.last_modified_ms),
    "library_name": lambda repo, _: repo.card.library_name,
    "likes": lambda repo, _: repo.settings.likes,
    "model-index": lambda repo, _: (repo.card.data or {}).get("model-index"),
    "pipeline_tag": lambda repo, _: repo.card.pipeline_tag,
    "private": lambda repo, _: repo.settings.private,
    "sha": lambda repo, _: repo.sha,
    "siblings": lambda repo, _: [{"rfilename": entry.path} for entry in repo.files],
    "spaces": lambda repo, _: [],
    "tags": lambda repo, _: list(repo.card.tags),
    "trendingScore": lambda repo, _: repo.settings.trending_score,
    "usedStorage": lambda repo, _: sum(entry.size for entry in repo.files),
    "xetEnabled": lambda repo, _: False,
}

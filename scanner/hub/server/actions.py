"""Changing a served folder as the Hub's users change their repos: commits, force pushes, renames, gating.

Editing the files by hand does much the same. What only these functions do: a replaced file stays servable at the commit
that a client has pinned (its content is kept in `.hub/blobs/` of the repo), a change of many files is one step to a hub
in the same process, and a renamed repo keeps its `_id` even when another one takes its name.
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from scanner.errors import UsageError
from scanner.hub.server.blobs import (
    BLOBS_FOLDER,
    SETTINGS_NAME,
    hash_file,
    is_repo_name,
    is_servable_name,
    walk_files,
)
from scanner.hub.server.locks import changing

__all__ = [
    "ACTIONS", "commit", "create", "create_empty", "delete", "delete_file", "force_push", "rename", "reuse_name",
    "set_state",
]  # fmt: skip

MAX_KEPT_BYTES = 64 * 1024**2
"""Of replaced contents, per repo; the oldest go first, and a larger file is not kept: its old commit then lacks it."""
Content: TypeAlias = bytes | str | Mapping[str, str] | None
"""Bytes, a text, `{"base64": ...}` for bytes in a script file, or None to delete the file."""
Files: TypeAlias = Mapping[str, Content]


def create(root: Path, repo: str, files: Files | None = None, **settings: Any) -> None:
    """A new repo with an `_id` that no other has, not even a deleted one of the same name."""
    folder = _free(root, repo)
    with changing(root), tempfile.TemporaryDirectory(dir=root, prefix=".new-") as aside:
        made = Path(aside) / "repo"
        made.mkdir()
        now = _now()
        _write_files(made, files or {})
        _write_settings(made, {"created_at": now, "last_modified": now, "_id": _new_uid()} | settings)
        folder.parent.mkdir(exist_ok=True)
        made.rename(folder)


def create_empty(root: Path, repo: str, **settings: Any) -> None:
    """A repo as the Hub lists it before the first upload: nothing in it but `.gitattributes`."""
    create(root, repo, {".gitattributes": "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, **settings)


def commit(root: Path, repo: str, files: Files) -> None:
    """Write files (None deletes one) as the next commit. The old contents stay servable at the old commit."""
    with changing(root):
        folder = _existing(root, repo)
        _keep(folder, files)
        _write_files(folder, files)
        _change_settings(folder, last_modified=_now())


def delete_file(root: Path, repo: str, path: str) -> None:
    """A commit that removes one file."""
    commit(root, repo, {path: None})


def force_push(root: Path, repo: str, files: Files | None = None) -> None:
    """Write files and forget the history: earlier commits answer RevisionNotFound, equal files or not."""
    with changing(root):
        folder = _existing(root, repo)
        shutil.rmtree(folder / BLOBS_FOLDER, ignore_errors=True)
        _write_files(folder, files or {})
        _change_settings(folder, last_modified=_now(), history=secrets.token_hex(4))


def rename(root: Path, repo: str, new: str) -> None:
    """Give a repo another name; the old one redirects, `_id` and history stay."""
    from scanner.hub.server.repos import HubFolder  # reads cards, which takes a moment to import

    with changing(root):
        folder, target = _existing(root, repo), _free(root, new)
        snapshot = HubFolder(root).find(repo)
        if snapshot is None:
            raise UsageError(f"there is no repo {repo}")
        former = [*snapshot.settings.renamed_from, repo]
        _change_settings(folder, renamed_from=former, _id=snapshot.uid)
        target.parent.mkdir(exist_ok=True)
        folder.rename(target)


def reuse_name(root: Path, repo: str, new: str, files: Files | None = None) -> None:
    """Rename a repo, and let another one, with an `_id` of its own, take the old name at once."""
    with changing(root):
        rename(root, repo, new)
        create(root, repo, files)


def delete(root: Path, repo: str) -> None:
    """Remove a repo."""
    with changing(root):
        grave = root / f".deleted-{secrets.token_hex(4)}"
        _existing(root, repo).rename(grave)  # gone at once, not file by file
        shutil.rmtree(grave)


def set_state(root: Path, repo: str, **settings: Any) -> None:
    """Change fields of `.hub.json` (gated, disabled, private, ...); None removes one."""
    with changing(root):
        _change_settings(_existing(root, repo), **settings)


ACTIONS: dict[str, Callable[..., None]] = {
    "create": create,
    "create_empty": create_empty,
    "commit": commit,
    "delete_file": delete_file,
    "force_push": force_push,
    "rename": rename,
    "reuse_name": reuse_name,
    "delete": delete,
    "set": set_state,
}
"""By the name that a script file calls them."""


def _existing(root: Path, repo: str) -> Path:
    folder = root / repo
    if not is_repo_name(repo) or not folder.is_dir():
        raise UsageError(f"there is no repo {repo}")
    return folder


def _free(root: Path, repo: str) -> Path:
    if not is_repo_name(repo):
        raise UsageError(f"{repo!r} is no name of a repo (owner/name)")
    if (root / repo).exists():
        raise UsageError(f"{repo} exists already")
    return root / repo


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"


def _new_uid() -> str:
    return f"{int(time.time()) & 0xFFFFFFFF:08x}{secrets.token_hex(8)}"


def _keep(folder: Path, files: Files) -> None:
    """Put aside what is about to be replaced."""
    kept = folder / BLOBS_FOLDER
    kept.mkdir(parents=True, exist_ok=True)
    for found in walk_files(folder):
        if found.path in files and found.size <= MAX_KEPT_BYTES:
            _write(kept / hash_file(found).etag, Path(found.disk).read_bytes())
    newest = sorted(kept.iterdir(), key=lambda path: path.lstat().st_mtime_ns, reverse=True)
    total = 0
    for path in newest:
        total += path.lstat().st_size
        if total > MAX_KEPT_BYTES:
            path.unlink()


def _write_files(folder: Path, files: Files) -> None:
    for name, content in files.items():
        parts = PurePosixPath(name).parts
        path = folder.joinpath(*parts) if parts else folder
        is_inside = path.parent.resolve().is_relative_to(folder.resolve())
        if not parts or not is_inside or not all(is_servable_name(part) for part in parts):
            raise UsageError(f"{name!r} is no path of a file inside a repo")
        if content is None:
            path.unlink(missing_ok=True)
        else:
            _write(path, _bytes(content))


def _bytes(content: bytes | str | Mapping[str, str]) -> bytes:
    if isinstance(content, bytes):
        return content
    return content.encode() if isinstance(content, str) else base64.b64decode(content["base64"], validate=True)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{secrets.token_hex(8)}")
    aside.write_bytes(content)
    aside.replace(path)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        raw = json.loads((folder / SETTINGS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return raw if isinstance(raw, dict) else {}


def _change_settings(folder: Path, **changes: Any) -> None:
    _write_settings(folder, _settings(folder) | changes)


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    stated = {name: value for name, value in settings.items() if value is not None}
    _write(folder / SETTINGS_NAME, json.dumps(stated, indent=1).encode())

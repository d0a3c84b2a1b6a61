"""Changing a served folder as the Hub's users change their repos: commits, force pushes, renames, gating.

Editing the files by hand does much the same. What only these functions do: a replaced file stays servable at the commit
that a client has pinned (its content moves to `.hub/blobs/` of the repo), a new state appears at once, and a renamed
repo keeps its `_id` even when another one takes its name.
"""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scanner.errors import UsageError
from scanner.hub.server.blobs import BLOBS_FOLDER, SETTINGS_NAME, hash_file, walk_files
from scanner.hub.server.repos import HubFolder

__all__ = ["ACTIONS", "commit", "create", "delete", "force_push", "rename", "reuse_name", "set_state"]

MAX_KEPT_BYTES = 64 * 1024**2
"""A replaced file larger than this is not kept: its old commit then lacks it."""
Files = Mapping[str, bytes | str | None]


def create(root: Path, repo: str, files: Files | None = None, **settings: Any) -> None:
    """A new repo; without files it is empty, as the Hub lists it before the first upload."""
    if (root / repo).exists():
        raise UsageError(f"{repo} exists already")
    with tempfile.TemporaryDirectory(dir=root, prefix=".new-") as aside:
        folder = Path(aside) / "repo"
        folder.mkdir()
        now = _now()
        _write_settings(folder, {"created_at": now, "last_modified": now} | settings)
        _write_files(folder, files or {})
        (root / repo).parent.mkdir(exist_ok=True)
        folder.rename(root / repo)


def commit(root: Path, repo: str, files: Files) -> None:
    """Write files (None deletes one) as the next commit. The old contents stay servable at the old commit."""
    folder = _existing(root, repo)
    kept = folder / BLOBS_FOLDER
    kept.mkdir(parents=True, exist_ok=True)
    for found in walk_files(folder):
        if found.path in files and found.size <= MAX_KEPT_BYTES:
            entry = hash_file(found)
            shutil.copyfile(found.disk, kept / entry.etag)
    _write_files(folder, files)
    _change_settings(folder, last_modified=_now())


def force_push(root: Path, repo: str, files: Files) -> None:
    """Write files and forget the history: earlier commits answer RevisionNotFound."""
    folder = _existing(root, repo)
    shutil.rmtree(folder / BLOBS_FOLDER, ignore_errors=True)
    # First the mark, then the files: whoever looks in between sees a commit that the next look forgets again.
    _change_settings(folder, history=secrets.token_hex(4))
    _write_files(folder, files)
    _change_settings(folder, last_modified=_now(), history=secrets.token_hex(4))


def rename(root: Path, repo: str, new: str) -> None:
    """Give a repo another name; the old one redirects, `_id` and history stay."""
    folder = _existing(root, repo)
    snapshot = HubFolder(root).find(repo)
    assert snapshot is not None
    former = _settings(folder).get("renamed_from")
    names = [*(former if isinstance(former, list) else []), repo]
    _change_settings(folder, renamed_from=names, _id=snapshot.uid)
    (root / new).parent.mkdir(exist_ok=True)
    folder.rename(root / new)


def reuse_name(root: Path, repo: str, new: str, files: Files | None = None) -> None:
    """Rename a repo, and let another one, with an `_id` of its own, take the old name at once."""
    rename(root, repo, new)
    create(root, repo, files, _id=secrets.token_hex(12))


def delete(root: Path, repo: str) -> None:
    """Remove a repo."""
    folder = _existing(root, repo)
    grave = root / f".deleted-{secrets.token_hex(4)}"
    folder.rename(grave)  # gone at once, not file by file
    shutil.rmtree(grave)


def set_state(root: Path, repo: str, **settings: Any) -> None:
    """Change fields of `.hub.json`: gated, disabled, private, ..."""
    _change_settings(_existing(root, repo), **settings)


ACTIONS: dict[str, Callable[..., None]] = {
    "create": create,
    "commit": commit,
    "force_push": force_push,
    "rename": rename,
    "reuse_name": reuse_name,
    "delete": delete,
    "set": set_state,
}
"""By the name that a script file calls them."""


def _existing(root: Path, repo: str) -> Path:
    folder = root / repo
    if not folder.is_dir() or folder.resolve().parent.parent != root.resolve():
        raise UsageError(f"there is no repo {repo}")
    return folder


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"


def _write_files(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        if path.resolve() != path.absolute().resolve() or ".." in Path(name).parts:
            raise UsageError(f"{name} is no path inside a repo")
        if content is None:
            path.unlink(missing_ok=True)
        else:
            _write(path, content.encode() if isinstance(content, str) else content)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
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
    _write(folder / SETTINGS_NAME, json.dumps(dict(settings), indent=1).encode())

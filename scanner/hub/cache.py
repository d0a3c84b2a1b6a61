"""Base models that lie in the user's Hub cache already: looked at without asking anybody."""

from __future__ import annotations

import os
from pathlib import Path

from scanner.hub.names import hub_id

__all__ = ["cached_file"]


def cached_file(repo_id: str, name: str, limit_bytes: int) -> Path | None:
    """A file of a repo in the Hub cache (`HF_HUB_CACHE`, `HF_HOME`), None where it is not there.

    The layout is that of huggingface_hub: `models--owner--name/refs/main` names the snapshot. A download by commit, as
    the probe's, leaves no such name: then it is the snapshot that came last.
    """
    if hub_id(repo_id) is None:
        return None
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    try:
        commit = _main(repo) or _latest(repo)
        path = repo / "snapshots" / commit / name
        known = commit.isalnum() and path.is_file() and path.stat().st_size <= limit_bytes
    except (OSError, UnicodeDecodeError):
        return None
    return path if known else None


def _main(repo: Path) -> str:
    """The commit of the main branch; empty where nothing says."""
    path = repo / "refs" / "main"
    if not path.is_file():
        return ""
    with path.open(encoding="ascii") as stream:
        return stream.read(64).strip()


def _latest(repo: Path) -> str:
    """The commit of the snapshot that came last; empty where there is none."""
    found = [(path.stat().st_mtime, path.name) for path in (repo / "snapshots").iterdir() if path.is_dir()]
    return max(found, default=(0.0, ""))[1]

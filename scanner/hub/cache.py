"""Base models that lie in the user's Hub cache already: looked at without asking anybody."""

from __future__ import annotations

import os
from pathlib import Path

from scanner.hub.names import hub_id

__all__ = ["cached_file"]


def cached_file(repo_id: str, name: str, limit_bytes: int) -> Path | None:
    """A file of a repo's main branch in the Hub cache (`HF_HUB_CACHE`, `HF_HOME`), None where it is not there.

    The layout is that of huggingface_hub: `models--owner--name/refs/main` names the snapshot.
    """
    if hub_id(repo_id) is None:
        return None
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    repo = cache / f"models--{repo_id.replace('/', '--')}"
    try:
        with (repo / "refs" / "main").open(encoding="ascii") as stream:
            commit = stream.read(64).strip()
        path = repo / "snapshots" / commit / name
        known = commit.isalnum() and path.is_file() and path.stat().st_size <= limit_bytes
    except (OSError, UnicodeDecodeError):
        return None
    return path if known else None

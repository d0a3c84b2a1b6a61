"""Names on the Hub."""

from __future__ import annotations

import re

__all__ = ["hub_id"]

# What huggingface_hub itself accepts: word characters at both ends of each part, no `--`, no `..`.
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"{_PART}(?:/{_PART})?", re.ASCII)


def hub_id(name: str | None) -> str | None:
    """`name` if it can be a Hub id (`owner/name`, or a legacy single name), else None (a path, empty, odd)."""
    if name and len(name) <= 96 and _HUB_ID.fullmatch(name) and not re.search(r"--|\.\.", name):
        return None if name.endswith(".git") else name
    return None

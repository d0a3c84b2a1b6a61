"""Names on the Hub."""

from __future__ import annotations

import re

__all__ = ["hub_id"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?")


def hub_id(name: str | None) -> str | None:
    """`name` if it can be a Hub id (`owner/name`, or a legacy single name), else None (a path, empty, odd)."""
    if name and _HUB_ID.fullmatch(name) and ".." not in name and not name.endswith((".", "-", ".git")):
        return name
    return None

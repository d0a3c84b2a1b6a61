"""Names on the Hub."""

from __future__ import annotations

import re
from itertools import islice

__all__ = ["cached_id", "hub_id", "last_segment", "related_bases", "tagged_bases"]

MAX_RELATED = 16
"""Base models of one repo that are looked at. Cards are free text: one may name ten thousand."""
MAX_TAGS = 2_000

# What huggingface_hub itself accepts: word characters at both ends of each part, no `--`, no `..`.
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"{_PART}(?:/{_PART})?", re.ASCII)


def hub_id(name: str | None) -> str | None:
    """`name` if it can be a Hub id (`owner/name`, or a legacy single name), else None (a path, empty, odd)."""
    if name and len(name) <= 96 and _HUB_ID.fullmatch(name) and not re.search(r"--|\.\.", name):
        return None if name.endswith(".git") else name
    return None


def related_bases(value: object) -> tuple[str, tuple[str, ...]]:
    """(relation, distinct ids) of the Hub's `baseModels`; ("", ()) where it is anything else than it should be."""
    if not isinstance(value, dict):
        return "", ()
    relation, models = value.get("relation"), value.get("models")
    entries = islice(models, MAX_RELATED) if isinstance(models, list) else ()
    names = (entry.get("id") for entry in entries if isinstance(entry, dict))
    ids = dict.fromkeys(name for name in names if isinstance(name, str) and hub_id(name))
    return (relation if isinstance(relation, str) else ""), tuple(ids)


def tagged_bases(tags: object) -> dict[str, str]:
    """The first id that the tags name for each relation: `base_model:RELATION:ID`; `base_model:ID` stands under ""."""
    found: dict[str, str] = {}
    for tag in islice(tags, MAX_TAGS) if isinstance(tags, list) else ():
        if isinstance(tag, str) and tag.startswith("base_model:"):
            relation, _, name = tag.removeprefix("base_model:").rpartition(":")
            if hub_id(name):
                found.setdefault(relation, name)
    return found


def last_segment(path: str) -> str:
    """The last part of a path of either kind, in lower case; empty where there is none."""
    parts = [part for part in re.split(r"[/\\]", path.strip()) if part not in ("", ".", "..")]
    return parts[-1].lower() if parts else ""


def cached_id(path: str) -> str | None:
    """The id that a path into a Hub cache spells (`.../models--owner--name/snapshots/...`)."""
    for part in re.split(r"[/\\]", path):
        if part.startswith("models--"):
            return hub_id("/".join(part.removeprefix("models--").split("--")))
    return None

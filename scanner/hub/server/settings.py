"""`.hub.json`: what a folder cannot say about itself, such as dates, gating, counters and former names.

    {"created_at": "2026-03-01T12:00:00Z", "last_modified": "2026-03-02T12:00:00Z", "_id": 24 hex digits,
     "gated": false | "auto" | "manual", "disabled": false, "private": false,
     "renamed_from": ["owner/first-name", "owner/second-name", "single-name"],
     "downloads": 0, "downloads_all_time": 0, "likes": 0, "trending_score": 0,
     "tags": ["added to the derived ones"], "library_name": "...", "pipeline_tag": "...",
     "history": "any text; another one forgets the commits before (a force push)",
     "security": {"scansDone": true, "filesWithIssues": [{"path": "...", "level": "unsafe"}]}}

Every field is optional, and a field of the wrong type counts as absent: one bad file must not take a whole
registry down. The `_id` is derived from the first name of `renamed_from` (or the present one) and `created_at`, so
it outlives a rename; state it to pin it.
"""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from scanner.hub.server.blobs import SETTINGS_NAME

_LIMIT_BYTES = 1 << 20
_LEVELS = {"unscanned", "safe", "queued", "error", "caution", "suspicious", "unsafe"}
_log = logging.getLogger(__name__)

Gated = Literal[False, "auto", "manual"]


@dataclass(frozen=True)
class RepoSettings:
    """The content of one `.hub.json`. Times are milliseconds since 1970."""

    uid: str | None = None
    created_ms: int | None = None
    last_modified_ms: int | None = None
    gated: Gated = False
    disabled: bool = False
    private: bool = False
    renamed_from: tuple[str, ...] = ()
    downloads: int = 0
    downloads_all_time: int | None = None
    likes: int = 0
    trending_score: float = 0
    tags: tuple[str, ...] = ()
    library_name: str | None = None
    pipeline_tag: str | None = None
    history: str | None = None
    """Changes when the history before the present commit was thrown away."""
    issues: tuple[tuple[str, str], ...] | None = None
    """(path, level) of a finished security scan; None when nothing has scanned this repo."""


def read_settings(repo_dir: Path) -> RepoSettings:
    path = repo_dir / SETTINGS_NAME
    try:
        if path.is_symlink():  # its content would show in the API: the same rule as for files
            return RepoSettings()
        with path.open("rb") as handle:
            raw = json.loads(handle.read(_LIMIT_BYTES))
    except FileNotFoundError:
        return RepoSettings()
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("%s is ignored: %s", path, error)
        return RepoSettings()
    if not isinstance(raw, dict):
        _log.warning("%s is ignored: not a JSON object", path)
        return RepoSettings()
    uid = str(raw.get("_id", "")).lower()
    gated = raw.get("gated", False)
    all_time = raw.get("downloads_all_time")
    return RepoSettings(
        uid=uid if re.fullmatch(r"[0-9a-f]{24}", uid) else None,
        created_ms=parse_time(raw.get("created_at")),
        last_modified_ms=parse_time(raw.get("last_modified")),
        gated=gated if gated in ("auto", "manual") else ("auto" if gated is True else False),
        disabled=raw.get("disabled") is True,
        private=raw.get("private") is True,
        renamed_from=_texts(raw.get("renamed_from")),
        downloads=_count(raw.get("downloads")),
        downloads_all_time=None if all_time is None else _count(all_time),
        likes=_count(raw.get("likes")),
        trending_score=_number(raw.get("trending_score")),
        tags=_texts(raw.get("tags")),
        library_name=_text(raw.get("library_name")),
        pipeline_tag=_text(raw.get("pipeline_tag")),
        history=_text(raw.get("history")),
        issues=_issues(raw.get("security")),
    )


def parse_time(value: Any) -> int | None:
    """ISO 8601 (UTC unless it says otherwise) or seconds since 1970, as milliseconds."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return round(moment.timestamp() * 1000)
        if isinstance(value, int | float) and not isinstance(value, bool):
            datetime.fromtimestamp(value, UTC)
            return round(value * 1000)
    except (ValueError, OverflowError, OSError):
        return None
    return None


def iso_time(milliseconds: int) -> str:
    """The Hub's form: UTC, milliseconds, `Z`."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{milliseconds % 1000:03d}Z"


def _count(value: Any) -> int:
    number = _number(value)
    return int(number) if 0 <= number < 2**53 else 0


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= 2**53:
        return 0
    return value if math.isfinite(value) else 0


def _text(value: Any) -> str | None:
    return clean_text(value) if isinstance(value, str) and value else None


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(clean_text(item) for item in values if isinstance(item, str) and item)


def clean_text(value: str) -> str:
    """JSON may escape half a surrogate pair, which cannot be sent as UTF-8 again."""
    return value.encode("utf-8", "replace").decode()


def _issues(value: Any) -> tuple[tuple[str, str], ...] | None:
    if not isinstance(value, dict) or value.get("scansDone") is not True:
        return None
    listed = value.get("filesWithIssues")
    return tuple(
        (clean_text(str(issue.get("path", ""))), issue["level"])
        for issue in (listed if isinstance(listed, list) else [])
        if isinstance(issue, dict) and issue.get("level") in _LEVELS
    )

"""The locked part is measured with one plan and one policy: the first that is named before its scores are looked at."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["LOCKS", "PINNED", "LockedError", "commit_of", "take_lock"]

LOCKS = Path(__file__).with_name("results")
"""`lock-PART.json` each."""
PINNED = ("plan_id", "policy_version", "detect_version")
"""What a table is measured with."""


class LockedError(RuntimeError):
    """The locked part belongs to another plan."""


def commit_of(folder: Path) -> str:
    """The commit of a checkout, with `+changes` where tracked files differ from it; `unknown` outside of one."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown"
    command = ["git", "status", "--porcelain", "--untracked-files=no"]
    changes = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    return head.stdout.strip() + ("+changes" if changes else "")


def take_lock(path: Path, pinned: dict[str, str], commit: str, *, break_lock: bool) -> dict[str, Any]:
    """Write down what the locked part is measured with, before it is.

    The same plan may be scored again, which gives the same figures; every time is noted.

    Args:
        path: of the lock.
        pinned: plan id, policy version and the detectors' version.
        commit: of the code.
        break_lock: take it from another plan; what it was pinned to stays in `broken`.

    Raises:
        LockedError: it is pinned to something else.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    mine = {name: pinned[name] for name in PINNED}
    lock: dict[str, Any] = {**mine, "date": now, "commit": commit, "scored": [], "broken": []}
    if path.is_file():
        old: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if {name: old[name] for name in PINNED} == mine:
            lock = old
        elif break_lock:
            lock["broken"] = [*old["broken"], {name: value for name, value in old.items() if name != "broken"}]
        else:
            was = ", ".join(old[name] for name in PINNED)
            raise LockedError(f"the locked part was scored with {was} on {old['date']}: --break-lock is recorded")
    lock["scored"] = [*lock["scored"], {"date": now, "commit": commit}]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(lock, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
    return lock

"""Files that ship with lorascope: inside the wheel under `flows/bundled`, beside the sources in a checkout."""

from __future__ import annotations

from pathlib import Path

from scanner.errors import UsageError

__all__ = ["bundled"]


def bundled(name: str, source: str) -> Path:
    """A shipped file or folder.

    Args:
        name: its name below `flows/bundled`.
        source: its path in a checkout.

    Raises:
        UsageError: neither is there.
    """
    here = Path(__file__).resolve().parent
    for path in (here / "bundled" / name, here.parent / source):
        if path.exists():
            return path
    raise UsageError(f"{source} is missing: install lorascope from its wheel or run from a source checkout")

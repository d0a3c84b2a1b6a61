"""Room for downloads: the temporary folder holds a shard's adapters, the Hub cache the base models."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from scanner.doctor.check import Check, Outcome
from scanner.settings import Settings

__all__ = ["check_disks", "check_room"]

GIB = 1024**3
_TOO_LITTLE = GIB // 4
"""With less, not even small adapters fit."""


def check_disks(settings: Settings) -> list[Check]:
    """The temporary folder and the Hub cache."""
    import scanner.hub.http  # noqa: F401 - sets huggingface_hub's environment first

    from huggingface_hub import constants  # isort: skip

    return [
        check_room(
            "temporary folder",
            Path(tempfile.gettempdir()),
            settings.max_shard_bytes,
            "set TMPDIR to a larger disk, or LORASCOPE_MAX_SHARD_BYTES to less than is free",
        ),
        check_room(
            "hub cache",
            Path(constants.HF_HUB_CACHE),
            settings.max_base_bytes,
            "set HF_HOME to a larger disk, or LORASCOPE_MAX_BASE_BYTES to less than is free",
        ),
    ]


def check_room(name: str, folder: Path, wanted_bytes: int, advice: str) -> Check:
    """Whether the folder can be written and has `wanted_bytes` free, the most that lorascope puts there at a time."""
    place = folder.expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Check(name, Outcome.ERROR, f"{folder} cannot be looked at: {error}", advice)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Check(name, Outcome.ERROR, f"{folder} cannot be written", advice)
    room = f"{folder} has {free / GIB:.1f} GiB free"
    if free < min(_TOO_LITTLE, wanted_bytes):
        return Check(name, Outcome.ERROR, f"{room}, too little to work with", advice)
    if free < wanted_bytes:
        return Check(name, Outcome.WARNING, f"{room}; at most {wanted_bytes / GIB:.1f} GiB are used at a time", advice)
    return Check(name, Outcome.OK, room)

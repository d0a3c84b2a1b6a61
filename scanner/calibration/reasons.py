"""Why a verdict is what it is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Reason"]


@dataclass(frozen=True)
class Reason:
    """One reason for a verdict, the deciding one first."""

    code: str
    message: str

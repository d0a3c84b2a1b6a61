"""Everything that decides one adapter's verdict, as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scanner.calibration.keys import Level
from scanner.calibration.paired import BatteryEvidence
from scanner.calibration.search_evidence import SearchEvidence
from scanner.calibration.search_reference import SearchRank
from scanner.calibration.stream import StreamTest
from scanner.model import Finding, Outcome

__all__ = ["Evidence"]


@dataclass(frozen=True)
class Evidence:
    """Everything that decides one adapter's verdict."""

    outcome: Outcome
    """Of reading it."""
    reason: str
    message: str
    findings: Sequence[Finding] = ()
    battery_outcome: Outcome | None = None
    """None: never probed."""
    battery_reason: str = ""
    battery: BatteryEvidence | None = None
    battery_rank: SearchRank | None = None
    """Where a battery that does enough stands among siblings; None where nobody was asked the same."""
    q_value: float | None = None
    """Of the battery in its crawl (Benjamini-Hochberg); None: free answers, or not probed."""
    q_alone: float | None = None
    """The same, of `p_by_itself`."""
    stream: StreamTest | None = None
    """What the stream over all crawls says of the battery; None outside of it."""
    p_weights: float | None = None
    reference_n: int = 0
    reference_level: Level = Level.EXACT
    """The step of the ladder that it was judged at."""
    most_siblings: int = 0
    """Of the widest step that was tried."""
    weight_carriers: tuple[str, ...] = ()
    """The modules that deviate most, described; for an outlier."""
    task_profile: str | None = None
    profile_reason: str = ""
    labels: Sequence[str] = ()
    """What the classes of an adapter's free responses have in common."""
    base_model: str = ""
    search: SearchEvidence | None = None
    """None: never searched."""
    coverage: float = 0.0
    """Share of the tensor bytes that was read, 0-1."""

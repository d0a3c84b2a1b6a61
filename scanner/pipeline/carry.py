"""Which modules carry the deviation of adapters whose weights stand out, for all of a judgement at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from scanner.calibration import Policy, Reference, UsualSize, deviating_modules
from scanner.store import Database

__all__ = ["find_carriers"]

MAX_SIBLINGS = 499
"""Members of a reference whose modules are looked at: enough for a median, and a bound on what one outlier costs."""


def find_carriers(database: Database, outliers: Mapping[str, Reference], policy: Policy) -> dict[str, tuple[str, ...]]:
    """adapter_id -> its modules that deviate most, described, the farthest first.

    Args:
        database: the store.
        outliers: adapter_id -> the reference that it stands out in.
        policy: the floor of the spread.

    Raises:
        StoreError: a file of the store cannot be read.
    """
    if not outliers:
        return {}
    members = {reference.reference_id: reference.members[:MAX_SIBLINGS] for reference in outliers.values()}
    usual: dict[str, dict[str, UsualSize]] = defaultdict(dict)
    for row in database.module_sizes(members):
        usual[row["reference_id"]][row["module"]] = UsualSize(row["center"], row["mad"], row["n"])
    own: dict[str, dict[str, float]] = defaultdict(dict)
    rows = database.of_adapters(
        "module_features", list(outliers), ("adapter_id", "module", "delta_frob"), "true", ("adapter_id", "module")
    )
    for row in rows:
        if row["delta_frob"] is not None:
            own[row["adapter_id"]][row["module"]] = row["delta_frob"]
    found = {}
    for adapter_id, reference in outliers.items():
        carriers = deviating_modules(own[adapter_id], usual[reference.reference_id], policy.spread_floor)
        found[adapter_id] = tuple(f"{c.module[:120]} ({c.z:+.1f} spreads)" for c in carriers)
    return found

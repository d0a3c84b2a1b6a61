"""Who is a copy or near-duplicate of whom: kin have one vote in a reference, and are not compared with each other."""

from __future__ import annotations

from collections import defaultdict

from scanner.store import Database

__all__ = ["find_kin"]


def find_kin(database: Database) -> dict[str, frozenset[str]]:
    """adapter_id -> its copies and near-duplicates, in both directions.

    Raises:
        StoreError: a file of the store cannot be read.
    """
    kin: dict[str, set[str]] = defaultdict(set)
    for row in database.rows("SELECT DISTINCT adapter_id, other_adapter_id FROM relations WHERE kind <> 'merge_part'"):
        kin[row["adapter_id"]].add(row["other_adapter_id"])
        kin[row["other_adapter_id"]].add(row["adapter_id"])
    return {adapter_id: frozenset(others) for adapter_id, others in kin.items()}

"""What a module may cost. Checked from shapes, before a factor is read."""

from __future__ import annotations

from scanner.errors import LimitExceededError

__all__ = ["check_factors", "check_operations"]

MAX_FEATURES = 2_000_000
"""Inputs or outputs of one module. The widest real ones are vocabularies, of about 256,000 words."""
MAX_FACTOR_ELEMENTS = 2**26
"""One factor as float64 is half a gigabyte then: rank 512 over a vocabulary of 128,000 still fits."""
MAX_HEAD_ELEMENTS = 2**26
"""One full tensor of a head, as it is read for a probe: 1,000 classes over a width of 65,536."""
MAX_SCAN_OPERATIONS = 5 * 10**12
"""Allows rank 256 on every linear layer of a 70B model, which needs a fifth of it, and rank 1,024 on a 7B one. Two
cores do 1 to 4 billion a second, the more the higher the rank: half an hour at the limit."""
MAX_EXPERTS = 4_096
"""Experts of one stacked parameter. The largest mixtures have 512."""


def check_factors(module: str, rank: int, in_features: int, out_features: int, max_rank: int) -> None:
    """Refuse a pair of factors [rank, in] and [out, rank] that is too large.

    Raises:
        LimitExceededError: the rank, the width, or the numbers in one factor.
    """
    if rank > max_rank:
        raise LimitExceededError(f"rank of {module[:120]}", max_rank, rank)
    if (widest := max(in_features, out_features)) > MAX_FEATURES:
        raise LimitExceededError(f"features of {module[:120]}", MAX_FEATURES, widest)
    if (elements := rank * widest) > MAX_FACTOR_ELEMENTS:
        raise LimitExceededError(f"numbers in a factor of {module[:120]}", MAX_FACTOR_ELEMENTS, elements)


def check_operations(operations: int) -> None:
    """Refuse an adapter whose weight scan would take too long.

    Raises:
        LimitExceededError: it would.
    """
    if operations > MAX_SCAN_OPERATIONS:
        raise LimitExceededError("operations that the weight scan needs", MAX_SCAN_OPERATIONS, operations)

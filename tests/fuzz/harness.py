"""A small mutation fuzzer: seeded, without dependencies; a run can be repeated exactly by its seed.

    python -m tests.fuzz.run TARGET --seconds 600 --seed 1

An input fails its target when anything but one of lorascope's own errors comes out, when it takes longer than
`MAX_SECONDS`, or when the process has grown beyond `MAX_GROWTH_BYTES` since its start.
"""

from __future__ import annotations

import random
import resource
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from scanner.errors import LorascopeError

__all__ = ["Failure", "Tally", "Target", "fuzz"]

MAX_SECONDS = 10.0
MAX_GROWTH_BYTES = 512 * 1024**2
_INTERESTING = (
    b"\x00",
    b"\xff",
    b"\x80",
    b"\x80\x02",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\xff" * 8,
    b"{",
    b"}",
    b"[",
    b'"',
    b".",
)


@dataclass(frozen=True)
class Target:
    """What is fuzzed."""

    name: str
    corpus: Sequence[bytes]
    """Valid inputs, from which all others are made."""
    run: Callable[[bytes], object]
    tokens: Sequence[bytes] = ()
    """Pieces that mean something to the parser."""


@dataclass
class Tally:
    """What came out."""

    executions: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    peak_growth_bytes: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)


class Failure(AssertionError):
    """An input that breaks its target. `data` is the input."""

    def __init__(self, message: str, data: bytes) -> None:
        super().__init__(message)
        self.data = data


def fuzz(target: Target, *, seed: int, executions: int | None = None, seconds: float | None = None) -> Tally:
    """Run mutated inputs until a count or a time is reached.

    Raises:
        Failure: an input that breaks the target.
    """
    rng, tally = random.Random(seed), Tally()
    begun, start_bytes = time.monotonic(), _resident_peak()
    while (executions is None or tally.executions < executions) and (
        seconds is None or time.monotonic() - begun < seconds
    ):
        data = mutated(rng, target)
        before = time.monotonic()
        try:
            target.run(data)
            tally.outcomes["accepted"] += 1
        except LorascopeError as error:
            tally.outcomes[type(error).__name__] += 1
        except Exception as error:
            raise Failure(f"{target.name}: {type(error).__name__}: {error}", data) from error
        spent = time.monotonic() - before
        tally.executions += 1
        tally.slowest_s = max(tally.slowest_s, spent)
        tally.peak_growth_bytes = max(tally.peak_growth_bytes, _resident_peak() - start_bytes)
        if spent > MAX_SECONDS:
            raise Failure(f"{target.name}: {spent:.1f} s for one input", data)
        if tally.peak_growth_bytes > MAX_GROWTH_BYTES:
            raise Failure(f"{target.name}: grown by {tally.peak_growth_bytes:,} bytes", data)
    tally.seconds = time.monotonic() - begun
    return tally


def _resident_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def mutated(rng: random.Random, target: Target) -> bytes:
    """One input: a few mutations of a valid one."""
    data = bytearray(rng.choice(target.corpus))
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        if rng.random() < 0.5:
            at = min(at, rng.randrange(400))  # headers come first
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            piece = rng.choice((*_INTERESTING, *target.tokens))
            data[at : at + len(piece)] = piece
        elif kind == 2:
            data[at:at] = rng.choice((*_INTERESTING, *target.tokens))
        elif kind == 3:
            del data[at : at + rng.choice((1, 2, 8, 64))]
        elif kind == 4:
            begin = rng.randrange(len(data) + 1)
            data[at:at] = data[begin : begin + rng.choice((1, 4, 32, 256))]
        elif kind == 5:
            data[at : at + 8] = rng.choice((0, 1, 255, 2**16, 2**31, 2**32, 2**63, 2**64 - 1)).to_bytes(8, "little")
        else:
            del data[at:]
    return bytes(data)

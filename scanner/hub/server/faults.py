"""Faults on demand: what goes wrong between a client and a hub, made to happen here.

A fault is a value that says what, where and how often; the board holds those still to come. How each kind is
carried out is in `gate.py`.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from scanner.errors import UsageError

FaultKind = Literal["429", "500", "drop", "slow", "ignore_range", "truncate", "wrong_sha256", "wrong_size"]
FaultHost = Literal["any", "api", "cdn"]
REQUEST_KINDS: frozenset[FaultKind] = frozenset({"429", "500", "drop", "slow", "ignore_range"})
BODY_KINDS: frozenset[FaultKind] = frozenset({"truncate", "wrong_sha256", "wrong_size"})
_STATUSES = (500, 502, 503, 504)


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    `429` answers "rate limit exceeded" until `seconds` have passed by its own account; `500` answers `status`;
    `drop` closes the connection without an answer; `slow` waits `seconds` first; `ignore_range` sends the whole
    file to a request for a part; `truncate` sends `keep_bytes` (half, when None) of the announced body and drops;
    `wrong_sha256` flips the body's last byte; `wrong_size` sends a complete body that is `size_delta` longer.
    The last three wait for a GET that is answered with a body, whatever else matches before.
    """

    kind: FaultKind
    match: str = ""
    """Regular expression, searched in the decoded path."""
    times: int | None = 1
    """How many requests it hits; None is all of them."""
    host: FaultHost = "any"
    method: str | None = None
    status: int = 500
    seconds: float = 1.0
    keep_bytes: int | None = None
    size_delta: int = -1

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise UsageError(f"fault kind {self.kind!r} is not one of {', '.join(get_args(FaultKind))}")
        if self.host not in get_args(FaultHost):
            raise UsageError(f"fault host {self.host!r} is not one of {', '.join(get_args(FaultHost))}")
        if self.status not in _STATUSES:
            raise UsageError(f"fault status {self.status!r} is not one of {', '.join(map(str, _STATUSES))}")
        numbers = (self.times, self.seconds, self.keep_bytes)
        if any(isinstance(n, bool) or not isinstance(n, int | float | None) or (n or 0) < 0 for n in numbers):
            raise UsageError("fault times, seconds and keep_bytes must be numbers of at least 0")
        if not isinstance(self.size_delta, int) or self.size_delta == 0:
            raise UsageError("fault size_delta must be a whole number other than 0")
        try:
            re.compile(self.match)
        except (re.error, TypeError) as error:
            raise UsageError(f"fault match {self.match!r} is not a regular expression: {error}") from None

    def matches(self, host: str, method: str, path: str) -> bool:
        return (
            self.host in ("any", host)
            and (self.method is None or self.method.upper() == method)
            and re.search(self.match, path) is not None
        )


class FaultBoard:
    """The faults still to come. Safe to change while the hub answers."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._lock = threading.Lock()
        self._open: list[tuple[Fault, int | None]] = []
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault) -> None:
        if fault.times == 0:
            return
        with self._lock:
            self._open.append((fault, fault.times))

    def clear(self) -> None:
        with self._lock:
            self._open.clear()

    def pending(self) -> tuple[Fault, ...]:
        with self._lock:
            return tuple(fault for fault, _ in self._open)

    def take(self, kinds: frozenset[FaultKind], host: str, method: str, path: str) -> Fault | None:
        """The first open fault of these kinds that this request meets; it counts as used."""
        with self._lock:
            for at, (fault, left) in enumerate(self._open):
                if fault.kind in kinds and fault.matches(host, method, path):
                    if left is not None and left <= 1:
                        del self._open[at]
                    else:
                        self._open[at] = (fault, None if left is None else left - 1)
                    return fault
        return None

    def to_json(self) -> list[dict[str, Any]]:
        with self._lock:
            return [asdict(fault) | {"times": left} for fault, left in self._open]


def parse_faults(raw: Any) -> list[Fault]:
    """One JSON object, or an array of them, with the fields of `Fault`."""
    items = raw if isinstance(raw, list) else [raw]
    names = {field.name for field in fields(Fault)}
    faults = []
    for item in items:
        if not isinstance(item, Mapping) or "kind" not in item:
            raise UsageError("a fault must be a JSON object with a kind")
        if unknown := set(item) - names:
            raise UsageError(f"a fault has no field {sorted(unknown)[0]!r}")
        # 429 and 500 read as numbers in a hand-written file.
        faults.append(Fault(**{**item, "kind": str(item["kind"])}))
    return faults


def load_faults(path: Path) -> list[Fault]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from None
    return parse_faults(raw)

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

FaultKind = Literal[
    "429", "500", "denied", "drop", "slow", "ignore_range",
    "wrong_linked_etag", "wrong_linked_size", "no_linked_etag",
    "truncate", "wrong_sha256", "wrong_size", "slow_body", "stalled_body", "chunked",
]  # fmt: skip
FaultHost = Literal["any", "api", "cdn"]
RetryHint = Literal["ratelimit", "seconds", "date", "both", "none", "garbage"]
PASSING_KINDS: frozenset[FaultKind] = frozenset({"slow", "ignore_range"})
"""The answer comes all the same."""
ANSWER_KINDS: frozenset[FaultKind] = frozenset({"429", "500", "denied", "drop"})
"""Instead of the answer."""
HEADER_KINDS: frozenset[FaultKind] = frozenset({"wrong_linked_etag", "wrong_linked_size", "no_linked_etag"})
BODY_KINDS: frozenset[FaultKind] = frozenset(
    {"truncate", "wrong_sha256", "wrong_size", "slow_body", "stalled_body", "chunked"}
)
_STATUSES = {"500": (500, 502, 503, 504), "denied": (401, 403, 404)}


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Instead of an answer: `429` says "rate limit exceeded" for `seconds`, told as `hint` says; `500` answers `status`;
    `denied` answers `status` (401, 403, 404) with `code` and `message`; `drop` closes the connection.
    Before it: `slow` waits `seconds`; `ignore_range` sends the whole file to a request for a part.
    In the headers of a file's address: `wrong_linked_etag`, `wrong_linked_size` (by `size_delta`), `no_linked_etag`.
    In the body: `truncate` sends `keep_bytes` (half, when None) of what is announced and drops; `wrong_sha256` flips
    the last byte; `wrong_size` sends a complete body that is `size_delta` longer; `slow_body` sends `bytes_per_s`;
    `stalled_body` sends `keep_bytes` and then nothing for `seconds`; `chunked` announces no length. These wait for a
    GET that is answered with a body, whatever else matches before.
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
    hint: RetryHint = "ratelimit"
    code: str | None = None
    message: str = ""
    bytes_per_s: int = 1000

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise UsageError(f"fault kind {self.kind!r} is not one of {', '.join(get_args(FaultKind))}")
        if self.host not in get_args(FaultHost):
            raise UsageError(f"fault host {self.host!r} is not one of {', '.join(get_args(FaultHost))}")
        if self.hint not in get_args(RetryHint):
            raise UsageError(f"fault hint {self.hint!r} is not one of {', '.join(get_args(RetryHint))}")
        if self.kind == "denied" and self.status == 500:
            object.__setattr__(self, "status", 401)
        statuses = _STATUSES["denied" if self.kind == "denied" else "500"]
        if self.status not in statuses:
            raise UsageError(f"fault status {self.status!r} is not one of {', '.join(map(str, statuses))}")
        if not isinstance(self.code, str | None) or not isinstance(self.message, str):
            raise UsageError("fault code and message must be texts")
        numbers = (self.times, self.seconds, self.keep_bytes, self.bytes_per_s)
        if any(isinstance(n, bool) or not isinstance(n, int | float | None) or (n or 0) < 0 for n in numbers):
            raise UsageError("fault times, seconds, keep_bytes and bytes_per_s must be numbers of at least 0")
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

    def take(
        self, kinds: frozenset[FaultKind], host: str, method: str, path: str, skip: Iterable[Fault] = ()
    ) -> Fault | None:
        """The first open fault of these kinds that this request meets, other than `skip`; it counts as used."""
        skipped = {id(fault) for fault in skip}
        with self._lock:
            for at, (fault, left) in enumerate(self._open):
                if fault.kind in kinds and id(fault) not in skipped and fault.matches(host, method, path):
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
    """The faults of a JSON file: a list of them, or the `faults` of an object (see `faults_of`)."""
    return parse_faults(faults_of(read_json(path)))


def faults_of(raw: Any) -> Any:
    """The faults of a JSON text that may also hold a script: `{"faults": [...], "script": [...]}`."""
    return raw.get("faults", []) if isinstance(raw, Mapping) and {"faults", "script"} & set(raw) else raw


def read_json(path: Path) -> Any:
    """Raises UsageError when the file is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from None

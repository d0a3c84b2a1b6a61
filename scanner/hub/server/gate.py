"""What happens around every answer: quota, script, faults, rate headers, the request log."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import NamedTuple
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scanner.errors import UsageError
from scanner.hub.server.answers import header_text, plain_error
from scanner.hub.server.connections import hang_up, wait_for_disconnect
from scanner.hub.server.faults import (
    ANSWER_KINDS,
    BODY_KINDS,
    HEADER_KINDS,
    PASSING_KINDS,
    Fault,
    FaultBoard,
    FaultHost,
)
from scanner.hub.server.limits import RateLimiter, RateState, bucket_of
from scanner.hub.server.script import Action, Script
from scanner.hub.server.tamper import BodyTamper, is_file_address, run_before_the_last_piece, spoil_headers

_log = logging.getLogger(__name__)
FAULTS_PATH = "/_hub/faults"
_RATE_HEADERS = ("RateLimit", "RateLimit-Policy")


class RequestRecord(NamedTuple):
    """One request as it was answered. `status` is 0 when the connection was dropped instead."""

    method: str
    path: str
    status: int


class TimedRecord(NamedTuple):
    """The same with its moment (`time.monotonic`, when it came in) and the origin that it asked."""

    at_s: float
    host: FaultHost
    method: str
    path: str
    status: int


class RequestLog:
    """What a hub was asked, in the order in which the answers began."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []
        self.timed: list[TimedRecord] = []

    def add(self, record: TimedRecord) -> None:
        self.records.append(RequestRecord(*record[2:]))
        self.timed.append(record)


class Gate:
    """ASGI middleware in front of one of the two origins."""

    def __init__(
        self,
        app: ASGIApp,
        host: FaultHost,
        faults: FaultBoard,
        script: Script,
        limiter: RateLimiter | None = None,
        log: RequestLog | None = None,
    ) -> None:
        self._app = app
        self._host = host
        self._faults = faults
        self._script = script
        self._limiter = limiter
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == FAULTS_PATH:
            await self._app(scope, receive, send)
            return
        # Routes match the undecoded path, so that an encoded slash stays part of a name.
        raw_path = scope["raw_path"].decode("ascii", "replace")
        path, method, came_at = unquote(raw_path, errors="replace"), scope["method"], time.monotonic()
        scope = {**scope, "path": raw_path}
        rate = self._limiter.count(bucket_of(raw_path)) if self._limiter is not None else None

        def record(status: int) -> None:
            if self._log is not None:
                self._log.add(TimedRecord(came_at, self._host, method, path, status))

        async def send_checked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if rate is not None:
                    for name, value in rate.headers.items():
                        headers.setdefault(name, value)
                for name in _RATE_HEADERS:
                    if headers.get(name) == "":  # a fault wants it left out
                        del headers[name]
                if is_file_address(message) and (fault := self._faults.take(HEADER_KINDS, self._host, method, path)):
                    spoil_headers(message, fault)
                record(message["status"])
            await send(message)

        if rate is not None and not rate.is_allowed:
            await _refuse(raw_path, rate)(scope, receive, send_checked)
            return
        before, after = self._script.due(self._host, method, path)
        for action in before:
            await run_in_threadpool(_act, action)
        passed_on = run_before_the_last_piece(send_checked, after) if after else send_checked
        met: list[Fault] = []
        while fault := self._faults.take(PASSING_KINDS, self._host, method, path, met):
            met.append(fault)
            if fault.kind == "slow":
                await asyncio.sleep(fault.seconds)
            else:
                kept = [(name, value) for name, value in scope["headers"] if name.lower() != b"range"]
                scope = {**scope, "headers": kept}
        answer: ASGIApp = self._app
        if fault := self._faults.take(ANSWER_KINDS, self._host, method, path):
            if fault.kind == "drop":
                record(0)
                hang_up(scope)
                await wait_for_disconnect(receive)
                return
            answer = _broken_answer(raw_path, fault, rate)

        def take_body_fault() -> Fault | None:
            return self._faults.take(BODY_KINDS, self._host, method, path)

        if method != "GET":
            await answer(scope, receive, passed_on)
        else:
            tamper = BodyTamper(passed_on, receive, take_body_fault, lambda: hang_up(scope))
            await answer(scope, receive, tamper)
            if tamper.has_cut:
                await wait_for_disconnect(receive)
        for action in after:  # of an answer that broke off
            await run_in_threadpool(_act, action)


def _act(action: Action) -> None:
    try:
        action()
    except (UsageError, OSError) as error:
        _log.warning("a step of the script failed: %s", error)


def _refuse(path: str, rate: RateState) -> ASGIApp:
    message = f"Too many requests: the quota of {rate.quota} per {rate.window_s} s is used up."
    return plain_error(path, 429, message, rate.headers)


def _broken_answer(path: str, fault: Fault, rate: RateState | None) -> ASGIApp:
    if fault.kind == "500":
        return plain_error(path, fault.status, "Internal Error - this one was asked for.", {})
    if fault.kind == "denied":
        message = fault.message or "This one was asked for."
        headers = {"X-Error-Message": header_text(message)}
        return plain_error(path, fault.status, message, headers | ({"X-Error-Code": fault.code} if fault.code else {}))
    quota = rate.quota if rate is not None else 1
    state = RateState(bucket_of(path), quota, 0, max(0, round(fault.seconds)), 300)
    message = "Too many requests: this one was asked for."
    return plain_error(path, 429, message, _retry_hint(fault, state))


def _retry_hint(fault: Fault, state: RateState) -> dict[str, str]:
    """How a 429 says when to come back. Without `RateLimit` of its own it must not carry the true one either."""
    seconds = str(round(fault.seconds))
    silent = dict.fromkeys(_RATE_HEADERS, "")
    when = datetime.now(UTC) + timedelta(seconds=min(fault.seconds, 10**8))
    hints = {
        "ratelimit": state.headers,
        "seconds": silent | {"Retry-After": seconds},
        "date": silent | {"Retry-After": format_datetime(when, usegmt=True)},
        "both": state.headers | {"Retry-After": seconds},
        "none": silent,
        "garbage": {"RateLimit": '"api";r=x;t=-1', "RateLimit-Policy": "?", "Retry-After": "soon"},
    }
    return hints[fault.hint]

"""What happens around every answer: quota, faults, rate headers, the request log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import unquote

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scanner.hub.server.answers import plain_error
from scanner.hub.server.connections import hang_up, wait_for_disconnect
from scanner.hub.server.faults import BODY_KINDS, REQUEST_KINDS, Fault, FaultBoard, FaultHost
from scanner.hub.server.limits import RateLimiter, RateState, bucket_of

FAULTS_PATH = "/_hub/faults"


class RequestRecord(NamedTuple):
    """One request as it was answered. `status` is 0 when the connection was dropped instead."""

    method: str
    path: str
    status: int


class Gate:
    """ASGI middleware in front of one of the two origins."""

    def __init__(
        self,
        app: ASGIApp,
        host: FaultHost,
        faults: FaultBoard,
        limiter: RateLimiter | None = None,
        log: list[RequestRecord] | None = None,
    ) -> None:
        self._app = app
        self._host = host
        self._faults = faults
        self._limiter = limiter
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == FAULTS_PATH:
            await self._app(scope, receive, send)
            return
        # Routes match the undecoded path, so that an encoded slash stays part of a name.
        raw_path = scope["raw_path"].decode("ascii", "replace")
        path, method = unquote(raw_path, errors="replace"), scope["method"]
        scope = {**scope, "path": raw_path}
        rate = self._limiter.count(bucket_of(raw_path)) if self._limiter is not None else None

        async def send_checked(message: Message) -> None:
            if message["type"] == "http.response.start":
                if rate is not None:
                    headers = MutableHeaders(scope=message)
                    for name, value in rate.headers.items():
                        headers.setdefault(name, value)
                self._record(method, path, message["status"])
            await send(message)

        if rate is not None and not rate.is_allowed:
            await _refuse(raw_path, rate)(scope, receive, send_checked)
            return
        answer: ASGIApp = self._app
        while fault := self._faults.take(REQUEST_KINDS, self._host, method, path):
            if fault.kind == "slow":
                await asyncio.sleep(fault.seconds)
            elif fault.kind == "ignore_range":
                kept = [(name, value) for name, value in scope["headers"] if name.lower() != b"range"]
                scope = {**scope, "headers": kept}
            elif fault.kind == "drop":
                self._record(method, path, 0)
                hang_up(scope)
                await wait_for_disconnect(receive)
                return
            else:
                answer = _broken_answer(raw_path, fault, rate)
                break

        def take_body_fault() -> Fault | None:
            return self._faults.take(BODY_KINDS, self._host, method, path)

        if method != "GET":
            await answer(scope, receive, send_checked)
            return
        tamper = _BodyTamper(send_checked, take_body_fault, lambda: hang_up(scope))
        await answer(scope, receive, tamper)
        if tamper.has_cut:
            await wait_for_disconnect(receive)

    def _record(self, method: str, path: str, status: int) -> None:
        if self._log is not None:
            self._log.append(RequestRecord(method, path, status))


def _refuse(path: str, rate: RateState) -> ASGIApp:
    message = f"Too many requests: the quota of {rate.quota} per {rate.window_s} s is used up."
    return plain_error(path, 429, message, rate.headers)


def _broken_answer(path: str, fault: Fault, rate: RateState | None) -> ASGIApp:
    if fault.kind == "500":
        return plain_error(path, fault.status, "Internal Error - this one was asked for.", {})
    quota = rate.quota if rate is not None else 1
    bucket = bucket_of(path)
    return _refuse(path, RateState(bucket, quota, 0, max(0, round(fault.seconds)), 300))


class _BodyTamper:
    """Passes one answer on, spoiling its body if a fault wants a body just now."""

    def __init__(
        self,
        send: Callable[[Message], Awaitable[None]],
        take: Callable[[], Fault | None],
        cut: Callable[[], None],
    ) -> None:
        self._send = send
        self._take = take
        self._cut = cut
        self.has_cut = False
        self._fault: Fault | None = None
        self._left = 0
        """Bytes of the original body still to come (of those to be passed on, for `truncate`)."""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._send(self._started(message))
        elif self.has_cut:
            return  # nobody is there any more
        elif self._fault is None:
            await self._send(message)
        else:
            await self._pass_on(message, self._fault)

    def _started(self, message: Message) -> Message:
        headers = MutableHeaders(scope=message)
        size = int(headers.get("content-length", "0"))
        self._fault = self._take() if message["status"] in (200, 206) and size > 0 else None
        if self._fault is None:
            return message
        self._left = size
        if self._fault.kind == "truncate":
            keep = size // 2 if self._fault.keep_bytes is None else self._fault.keep_bytes
            self._left = min(keep, size - 1)
        elif self._fault.kind == "wrong_size":
            self._left = max(0, size + self._fault.size_delta)
            headers["content-length"] = str(self._left)
        return message

    async def _pass_on(self, message: Message, fault: Fault) -> None:
        body, more = message.get("body", b""), message.get("more_body", False)
        if fault.kind == "wrong_sha256":
            self._left -= len(body)
            if body and self._left == 0:
                body = body[:-1] + bytes([body[-1] ^ 0xFF])
            await self._send({**message, "body": body})
            return
        body = body[: self._left]
        self._left -= len(body)
        if fault.kind == "truncate":
            await self._send({**message, "body": body, "more_body": True})
            if self._left == 0:
                self.has_cut = True
                self._cut()
            return
        if not more:
            body += bytes(self._left)
        await self._send({**message, "body": body, "more_body": more})

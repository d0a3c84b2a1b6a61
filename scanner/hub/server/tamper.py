"""What is done to an answer on its way out: its headers or its body spoiled, a change timed by its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Send

from scanner.hub.server.connections import wait_for_disconnect
from scanner.hub.server.faults import Fault

_PAUSES_PER_S = 10


def spoil_headers(message: Message, fault: Fault) -> None:
    """Changes what a file's address announces, in place."""
    headers = MutableHeaders(scope=message)
    if fault.kind == "no_linked_etag":
        for name in ("X-Linked-ETag", "ETag"):
            if name in headers:
                del headers[name]
    elif fault.kind == "wrong_linked_etag":
        name = "X-Linked-ETag" if "X-Linked-ETag" in headers else "ETag"
        digest = headers.get(name, "").strip('"')
        headers[name] = f'"{"0" * len(digest)}"'
    elif "X-Linked-Size" in headers:
        headers["X-Linked-Size"] = str(max(0, int(headers["X-Linked-Size"]) + fault.size_delta))


def is_file_address(message: Message) -> bool:
    """Whether an answer announces a file."""
    headers = MutableHeaders(scope=message)
    return "X-Linked-ETag" in headers or ("X-Repo-Commit" in headers and "ETag" in headers)


def run_before_the_last_piece(send: Send, actions: list[Callable[[], None]]) -> Send:
    """Passes an answer on and runs the actions while its last piece is still held back.

    Whoever has the whole answer can rely on the change having happened, and the answer does not know of it. The headers
    wait for the first piece: an answer without a body is complete with them.
    """
    held: list[Message] = []

    async def pass_on(message: Message) -> None:
        held.append(message)
        if message["type"] == "http.response.start":
            return
        if not message.get("more_body", False):
            for action in actions:
                await run_in_threadpool(action)
            actions.clear()
        while held:
            await send(held.pop(0))

    return pass_on


class BodyTamper:
    """Passes one answer on, spoiling its body if a fault wants a body just now."""

    def __init__(
        self,
        send: Send,
        receive: Receive,
        take: Callable[[], Fault | None],
        cut: Callable[[], None],
    ) -> None:
        self._send, self._receive = send, receive
        self._take, self._cut = take, cut
        self.has_cut = False
        self._fault: Fault | None = None
        self._left = 0
        """Bytes of the original body still to come (of those to be passed on, where it is cut)."""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._send(self._started(message))
        elif self.has_cut:
            return  # nobody is there any more
        elif self._fault is None or self._fault.kind == "chunked":
            await self._send(message)
        else:
            handlers: dict[str, Callable[[Message, Fault], Awaitable[None]]] = {
                "wrong_sha256": self._flip,
                "wrong_size": self._resize,
                "slow_body": self._drip,
            }
            await handlers.get(self._fault.kind, self._break)(message, self._fault)

    def _started(self, message: Message) -> Message:
        headers = MutableHeaders(scope=message)
        size = int(headers.get("content-length", "0"))
        self._fault = self._take() if message["status"] in (200, 206) and size > 0 else None
        if self._fault is None:
            return message
        self._left = size
        if self._fault.kind in ("truncate", "stalled_body"):
            keep = size // 2 if self._fault.keep_bytes is None else self._fault.keep_bytes
            self._left = min(keep, size - 1)
        elif self._fault.kind == "wrong_size":
            self._left = max(0, size + self._fault.size_delta)
            headers["content-length"] = str(self._left)
        elif self._fault.kind == "chunked":
            del headers["content-length"]
        return message

    async def _flip(self, message: Message, _fault: Fault) -> None:
        body = message.get("body", b"")
        self._left -= len(body)
        if body and self._left == 0:
            body = body[:-1] + bytes([body[-1] ^ 0xFF])
        await self._send({**message, "body": body})

    async def _resize(self, message: Message, _fault: Fault) -> None:
        body = message.get("body", b"")[: self._left]
        self._left -= len(body)
        if not message.get("more_body", False):
            body += bytes(self._left)
        await self._send({**message, "body": body})

    async def _drip(self, message: Message, fault: Fault) -> None:
        body, more = message.get("body", b""), message.get("more_body", False)
        piece = max(1, fault.bytes_per_s // _PAUSES_PER_S)
        for start in range(0, len(body), piece):
            await self._send({"type": message["type"], "body": body[start : start + piece], "more_body": True})
            await self._pause(piece / max(1, fault.bytes_per_s))
            if self.has_cut:
                return
        if not more:
            await self._send({"type": message["type"], "body": b"", "more_body": False})

    async def _break(self, message: Message, fault: Fault) -> None:
        body = message.get("body", b"")[: self._left]
        self._left -= len(body)
        await self._send({**message, "body": body, "more_body": True})
        if self._left == 0:
            self.has_cut = True
            if fault.kind == "stalled_body":
                await self._pause(fault.seconds)
            self._cut()

    async def _pause(self, seconds: float) -> None:
        """Nothing for so long, or until the client has gone away."""
        try:
            await asyncio.wait_for(wait_for_disconnect(self._receive), seconds)
        except TimeoutError:
            return
        self.has_cut = True

"""A way for the application to hang up on a client, which ASGI itself does not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

_EXTENSION = "hub.hang_up"


class HangUpProtocol(H11Protocol):
    """uvicorn's own protocol, which also tells the application how to close its connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        app: Any = self.app

        async def with_hang_up(scope: Scope, receive: Receive, send: Send) -> None:
            extensions = {**(scope.get("extensions") or {}), _EXTENSION: self._hang_up}
            await app({**scope, "extensions": extensions}, receive, send)

        self.app: Any = with_hang_up

    def _hang_up(self) -> None:
        self.transport.close()


def hang_up(scope: Scope) -> None:
    """Closes the connection once everything written so far is out."""
    close: Callable[[], None] = scope["extensions"][_EXTENSION]
    close()


async def wait_for_disconnect(receive: Receive) -> None:
    """uvicorn calls an answer that ends early an error, unless it has noticed that the connection is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass

"""The HTTP client that `huggingface_hub` is made to use.

The library's own retries sleep for as long as a 429's header asks (minutes, in the calling thread) and give a dead
endpoint 23 seconds of back-off. Here every answer that calls for a retry becomes one of our errors before the
library sees it, so that one policy (`scanner.hub.retry`) decides, and every request has a time limit.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

# Read by huggingface_hub at import. Xet would fetch bytes outside of the size limits below; the telemetry call
# delays the first request by up to 3 s. A value that the user has set stays.
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import httpx2
from huggingface_hub import set_client_factory
from huggingface_hub.utils import _http as hf_http

from scanner.errors import (
    HubUnavailableError,
    HubUnreachableError,
    LimitExceededError,
    RateLimitedError,
)

__all__ = ["RateState", "byte_limit", "install_client", "parse_rate_limit"]

_RATE_LIMIT = re.compile(r'"(?P<bucket>[\w-]+)"\s*;\s*r=(?P<remaining>\d+)(?:\s*;\s*t=(?P<reset_s>\d+))?')
CONNECT_TIMEOUT_S = 5.0
_RETRY_LATER = frozenset({408, 429, 500, 502, 503, 504})
_byte_limit: ContextVar[int | None] = ContextVar("byte_limit", default=None)


@dataclass
class RateState:
    """What the Hub last said of the request budget. Shared by all threads of the process."""

    requests: int = 0
    remaining: int | None = None
    reset_s: float | None = None


def parse_rate_limit(header: str | None) -> tuple[int, float] | None:
    """(requests left, seconds to the reset) of a `RateLimit: "api";r=499;t=295` header, or None."""
    match = _RATE_LIMIT.search(header or "")
    return (int(match["remaining"]), float(match["reset_s"] or 0)) if match else None


@contextmanager
def byte_limit(limit: int) -> Iterator[None]:
    """Refuse bodies that announce more than `limit` bytes, or announce nothing, before they are read."""
    token = _byte_limit.set(limit)
    try:
        yield
    finally:
        _byte_limit.reset(token)


class _Client(httpx2.Client):
    """Raises our errors instead of returning what should be tried again."""

    def __init__(self, *, endpoint: str, timeout_s: float, state: RateState, **options: Any) -> None:
        super().__init__(**options)
        self._endpoint_host = httpx2.URL(endpoint).netloc
        self._limit_s = timeout_s
        self._rate_state = state
        self._rate_lock = threading.Lock()

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        if not any((request.extensions.get("timeout") or {}).values()):
            limits = httpx2.Timeout(self._limit_s, connect=min(self._limit_s, CONNECT_TIMEOUT_S))
            request.extensions = {**request.extensions, "timeout": limits.as_dict()}
        where = f"{request.url.scheme}://{request.url.netloc.decode()}"
        try:
            response = super().send(request, **options)
        except httpx2.ConnectError as error:
            # A Hub that never answered is not there; one that did will be back.
            if request.url.netloc == self._endpoint_host and self._rate_state.requests == 0:
                raise HubUnreachableError(
                    f"cannot connect to the Hub at {where} ({error}); check the network or set HF_ENDPOINT"
                ) from error
            raise HubUnavailableError(f"cannot connect to {where}: {error}") from error
        except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
            raise HubUnavailableError(f"{where}: {type(error).__name__} {error}".rstrip()) from error
        rate = parse_rate_limit(response.headers.get("RateLimit"))
        with self._rate_lock:
            self._rate_state.requests += 1 + len(response.history)
            if rate:
                self._rate_state.remaining, self._rate_state.reset_s = rate
        self._refuse(request, response, rate)
        return response

    def _refuse(self, request: httpx2.Request, response: httpx2.Response, rate: tuple[int, float] | None) -> None:
        status = response.status_code
        if status in _RETRY_LATER:
            response.close()
            if status == 429:
                after = response.headers.get("Retry-After", "")
                reset_s = rate[1] if rate else float(after) if after.isdigit() else 0.0
                raise RateLimitedError(f"the Hub's request limit is used up ({request.url.path})", reset_s)
            raise HubUnavailableError(f"the Hub answered {status} ({request.url.path})")
        limit = _byte_limit.get()
        if limit is not None and request.method == "GET" and status in (200, 206):
            length = response.headers.get("Content-Length", "")
            if not length.isdigit() or int(length) > limit:
                response.close()
                actual = int(length) if length.isdigit() else limit + 1
                raise LimitExceededError(f"download of {request.url.path}", limit, actual)


_install_lock = threading.Lock()
_installed: tuple[str, float, RateState] | None = None


def install_client(endpoint: str, timeout_s: float) -> RateState:
    """Make `huggingface_hub` use the client above in this process; returns the shared rate state.

    Asking again for the same endpoint changes nothing: replacing the client would close it under other threads.
    """
    global _installed
    with _install_lock:
        if _installed is not None and _installed[:2] == (endpoint, timeout_s):
            return _installed[2]
        state = RateState()
        set_client_factory(
            lambda: _Client(
                endpoint=endpoint,
                timeout_s=timeout_s,
                state=state,
                follow_redirects=True,
                event_hooks={"request": [hf_http.hf_request_event_hook]},
            )
        )
        _installed = (endpoint, timeout_s, state)
        return state

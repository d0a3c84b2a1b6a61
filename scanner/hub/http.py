"""The HTTP client that `huggingface_hub` is made to use.

The library's own retries sleep for as long as a 429's header asks (minutes, in the calling thread) and give a dead
endpoint 23 seconds of back-off. Here every answer that calls for a retry becomes one of our errors before the
library sees it, so that one policy (`scanner.hub.retry`) decides. Every request waits for the request budget, and
every body has a limit in bytes and a limit in time that grows with its size.

Works with huggingface_hub 2 (which brings httpx2) and 1.31 and newer (httpx).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

# Read by huggingface_hub at import. Xet would fetch bytes outside of the size limits below; the telemetry call
# delays the first request by up to 3 s. A value that the user has set stays.
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

from huggingface_hub import set_client_factory
from huggingface_hub.utils import _http as hf_http

from scanner.errors import (
    HubUnavailableError,
    HubUnreachableError,
    LimitExceededError,
    RateLimitedError,
)
from scanner.hub.budget import RequestBudget, retry_after_s, route_of
from scanner.settings import Settings

if TYPE_CHECKING:
    import httpx2 as httpx
else:
    # The one that huggingface_hub itself uses: its exceptions have to be caught.
    httpx = getattr(hf_http, "httpx2", None) or hf_http.httpx

__all__ = ["byte_limit", "httpx", "install_client"]

CONNECT_TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 256 * 1024**2
"""Of an answer that is no download. A listing page of 1,000 repos has a few MiB."""
MIN_LIMIT_BYTES = 1024**2
"""An error's own text must fit, however small the file is that was asked for."""
_RETRY_LATER = frozenset({408, 429, 500, 502, 503, 504})
_byte_limit: ContextVar[int | None] = ContextVar("byte_limit", default=None)


@contextmanager
def byte_limit(limit: int) -> Iterator[None]:
    """Refuse bodies that announce more than `limit` bytes before they are read, and cut those that have more."""
    token = _byte_limit.set(limit)
    try:
        yield
    finally:
        _byte_limit.reset(token)


class _BoundedBody(httpx.SyncByteStream):
    """A body that ends with an error when it is too large or too slow. Each single read has a limit anyway."""

    def __init__(self, body: Any, url: Any, settings: Settings, limit: int) -> None:
        self._body, self._url, self._settings, self._limit = body, url, settings, limit

    def __iter__(self) -> Iterator[bytes]:
        started, size = time.monotonic(), 0
        for chunk in self._body:
            size += len(chunk)
            if size > self._limit:
                raise LimitExceededError(f"answer of {self._url.path[:200]} in bytes", self._limit, size)
            allowed_s = self._settings.request_timeout_s + size / self._settings.min_bytes_per_s
            if time.monotonic() - started > allowed_s:
                slow = f"slower than {self._settings.min_bytes_per_s:,} bytes per second"
                raise HubUnavailableError(f"{self._url.host}: {size:,} bytes in {allowed_s:.0f} s, {slow}")
            yield chunk

    def close(self) -> None:
        self._body.close()


class _Transport(httpx.BaseTransport):
    """Every single request, redirects included, waits for the budget; every body is bounded."""

    def __init__(self, inner: Any, endpoint: str, settings: Settings, budget: RequestBudget) -> None:
        self._inner = inner
        self._host = httpx.URL(endpoint).netloc
        self._settings, self._budget = settings, budget

    def handle_request(self, request: Any) -> Any:
        if request.url.netloc != self._host:
            response = self._inner.handle_request(request)
            self._budget.count_download()
        else:
            route = route_of(request.url.raw_path.decode("ascii", "replace"))
            self._budget.acquire(route)
            headers, status = None, 0
            try:
                response = self._inner.handle_request(request)
                headers, status = response.headers, response.status_code
            finally:
                self._budget.release(route, headers, refused=status == 429)
        limit = MAX_ANSWER_BYTES if (asked := _byte_limit.get()) is None else max(asked, MIN_LIMIT_BYTES)
        response.stream = _BoundedBody(response.stream, request.url, self._settings, limit)
        return response

    def close(self) -> None:
        self._inner.close()


class _Client(httpx.Client):
    """Raises our errors instead of returning what should be tried again."""

    def __init__(self, *, endpoint: str, settings: Settings, budget: RequestBudget, **options: Any) -> None:
        super().__init__(**options)
        # Not `transport=`: with it httpx would no longer look at HTTPS_PROXY and its like.
        self._transport = _Transport(self._transport, endpoint, settings, budget)
        mounts = self._mounts.items()
        self._mounts = {key: one and _Transport(one, endpoint, settings, budget) for key, one in mounts}
        self._endpoint_host = httpx.URL(endpoint).netloc
        self._limit_s = settings.request_timeout_s
        self._budget = budget
        # A body that unpacks to a thousand times its size would pass every limit on bytes.
        self.headers["Accept-Encoding"] = "identity"

    def send(self, request: Any, **options: Any) -> Any:
        if not any((request.extensions.get("timeout") or {}).values()):
            limits = httpx.Timeout(self._limit_s, connect=min(self._limit_s, CONNECT_TIMEOUT_S))
            request.extensions = {**request.extensions, "timeout": limits.as_dict()}
        where = f"{request.url.scheme}://{request.url.netloc.decode()}"
        try:
            response = super().send(request, **options)
        except httpx.ConnectError as error:
            # A Hub that never answered is not there; one that did will be back.
            if request.url.netloc == self._endpoint_host and self._budget.requests == 0:
                raise HubUnreachableError(
                    f"cannot connect to the Hub at {where} ({error}); check the network or set HF_ENDPOINT"
                ) from error
            raise HubUnavailableError(f"cannot connect to {where}: {error}") from error
        except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError) as error:
            raise HubUnavailableError(f"{where}: {type(error).__name__} {error}".rstrip()) from error
        except (httpx.TooManyRedirects, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise HubUnavailableError(f"{where} redirects to nowhere: {error}") from error
        self._refuse(request, response)
        return response

    def _refuse(self, request: Any, response: Any) -> None:
        status = response.status_code
        if status in _RETRY_LATER:
            response.close()
            if status == 429:
                message = f"the Hub's request limit is used up ({request.url.path})"
                raise RateLimitedError(message, retry_after_s(response.headers))
            raise HubUnavailableError(f"the Hub answered {status} ({request.url.path})")
        limit = _byte_limit.get()
        if limit is not None and request.method == "GET" and status in (200, 206):
            length = response.headers.get("Content-Length", "")
            if length.isdigit() and int(length) > limit:
                response.close()
                raise LimitExceededError(f"download of {request.url.path}", limit, int(length))


_install_lock = threading.Lock()
_installed: tuple[str, Settings, RequestBudget] | None = None


def install_client(endpoint: str, settings: Settings) -> RequestBudget:
    """Make `huggingface_hub` use the client above in this process; returns the shared request budget.

    Asking again for the same endpoint changes nothing: replacing the client would close it under other threads.
    """
    global _installed
    with _install_lock:
        if _installed is not None and _installed[:2] == (endpoint, settings):
            return _installed[2]
        budget = RequestBudget(settings.rate_reserve, settings.max_sleep_s)
        set_client_factory(_factory(endpoint, settings, budget))
        _installed = (endpoint, settings, budget)
        return budget


def _factory(endpoint: str, settings: Settings, budget: RequestBudget) -> Callable[[], Any]:
    return lambda: _Client(
        endpoint=endpoint,
        settings=settings,
        budget=budget,
        follow_redirects=True,
        event_hooks={"request": [hf_http.hf_request_event_hook]},
    )

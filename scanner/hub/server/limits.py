"""Request quotas in fixed windows, told in the `RateLimit` headers of every answer."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

DEFAULT_QUOTA = 100_000
DEFAULT_WINDOW_S = 300.0


@dataclass(frozen=True)
class RateState:
    """One bucket after one request."""

    bucket: str
    quota: int
    remaining: int
    resets_in_s: int
    window_s: int
    is_allowed: bool = True

    @property
    def headers(self) -> dict[str, str]:
        return {
            "RateLimit": f'"{self.bucket}";r={self.remaining};t={self.resets_in_s}',
            "RateLimit-Policy": f'"fixed window";"{self.bucket}";q={self.quota};w={self.window_s}',
        }


class RateLimiter:
    """Counts requests per bucket: `api`, `resolvers` (file addresses) and `pages` (the rest).

    A quota for `all` is one for everything together, and the headers name that bucket.
    """

    def __init__(
        self,
        quotas: Mapping[str, int] | None = None,
        window_s: float = DEFAULT_WINDOW_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quotas = dict(quotas or {})
        self._window_s = window_s
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[str, tuple[float, int]] = {}

    def count(self, bucket: str) -> RateState:
        bucket = "all" if "all" in self._quotas else bucket
        quota = self._quotas.get(bucket, DEFAULT_QUOTA)
        with self._lock:
            now = self._clock()
            started_at, used = self._windows.get(bucket, (now, 0))
            if now - started_at >= self._window_s:
                started_at, used = now, 0
            is_allowed = used < quota
            used += is_allowed
            self._windows[bucket] = (started_at, used)
        resets_in_s = max(1, math.ceil(started_at + self._window_s - now))
        return RateState(bucket, quota, quota - used, resets_in_s, math.ceil(self._window_s), is_allowed)


def bucket_of(path: str) -> str:
    """Which quota a request draws on. Works on the undecoded path: `%2F` in place of a slash makes it a page."""
    if path.startswith("/api/resolve-cache/") or ("/resolve/" in path and not path.startswith("/api/")):
        return "resolvers"
    return "api" if path.startswith("/api/") else "pages"

"""The request budget: what the Hub's `RateLimit` headers leave, shared by every thread of the process.

A request waits here before it is sent, so that the Hub never has to refuse one. Each header tells what is left after
the answered request; requests under way are counted off, and a reserve stays for whoever else uses the same token.
Two processes with one token need no channel between them: each sees in the headers what both have used.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["RequestBudget", "parse_rate_limit", "retry_after_s", "route_of"]

_RATE_LIMIT = re.compile(r'"(?P<bucket>[\w-]+)"\s*;\s*r=(?P<remaining>\d{1,12})(?:\s*;\s*t=(?P<reset_s>\d{1,12}))?')
_QUOTA = re.compile(r"(?:^|;)\s*q=(?P<quota>\d{1,12})")
MARGIN_S = 0.05
"""Added to every wait for a window: the header has whole seconds, two clocks are compared."""


def route_of(path: str) -> str:
    """Which of the Hub's quotas a request draws on, as far as its path tells: `api`, `resolvers` or `pages`."""
    if path.startswith("/api/resolve-cache/") or ("/resolve/" in path and not path.startswith("/api/")):
        return "resolvers"
    return "api" if path.startswith("/api/") else "pages"


def parse_rate_limit(header: str | None) -> tuple[str, int, float] | None:
    """(bucket, requests left, seconds to the reset) of a `RateLimit: "api";r=499;t=295` header, or None."""
    match = _RATE_LIMIT.search(header or "")
    return (match["bucket"], int(match["remaining"]), float(match["reset_s"] or 0)) if match else None


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that a 429 asks to wait: its `RateLimit` window, else `Retry-After` (seconds or a date), else 0."""
    rate = parse_rate_limit(headers.get("RateLimit"))
    if rate is not None and rate[2] > 0:
        return rate[2]
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit() and len(text) <= 12:
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return 0.0
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


@dataclass
class _Bucket:
    """One quota as the Hub last told it."""

    remaining: int | None = None
    """None: not told yet, or its window has passed and the quota is not known."""
    quota: int | None = None
    resets_at: float = 0.0
    in_flight: int = 0
    told: bool = False


class RequestBudget:
    """Lets requests through as the Hub's headers allow. Safe to share between threads.

    Before the first header of a quota is known, one request at a time goes out, to learn it.
    """

    def __init__(
        self,
        reserve: float = 0.0,
        max_wait_s: float = 310.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            reserve: share of each quota that is never used, 0-1.
            max_wait_s: longest wait before one request; then it goes out whatever the last header said.
            clock: monotonic seconds.
        """
        self._reserve, self._max_wait_s, self._clock = reserve, max_wait_s, clock
        self._changed = threading.Condition()
        self._buckets: dict[str, _Bucket] = {}
        self._names: dict[str, str] = {}
        self.requests = 0
        """Answers of the Hub's own host, redirects and errors included."""
        self.downloads = 0
        """Answers of other hosts (the CDN), which no quota counts."""
        self.waited_s = 0.0
        """Time that requests waited here, summed over the threads."""

    def acquire(self, route: str) -> None:
        """Wait until a request of this route may be sent. `release` must follow, whatever became of it."""
        started = self._clock()
        with self._changed:
            while (wait_s := self._wait_s(self._bucket(route))) > 0:
                left = started + self._max_wait_s - self._clock()
                if left <= 0:
                    break
                self._changed.wait(min(wait_s, left))
            self._bucket(route).in_flight += 1
            self.waited_s += self._clock() - started

    def release(self, route: str, headers: Mapping[str, str] | None, *, refused: bool = False) -> None:
        """Tell what became of a request.

        Args:
            route: as for `acquire`.
            headers: of the answer; None when there was none.
            refused: the answer was a 429.
        """
        with self._changed:
            bucket = self._bucket(route)
            bucket.in_flight = max(0, bucket.in_flight - 1)
            if headers is not None:
                self.requests += 1
                self._learn(route, headers, refused)
            self._changed.notify_all()

    def count_download(self) -> None:
        """Another host has answered."""
        with self._changed:
            self.downloads += 1

    def remaining(self, route: str = "api") -> int | None:
        """Requests left in the window of a route, as the Hub last told; None when it told nothing."""
        with self._changed:
            return self._bucket(route).remaining

    def _bucket(self, route: str) -> _Bucket:
        return self._buckets.setdefault(self._names.get(route, route), _Bucket())

    def _wait_s(self, bucket: _Bucket) -> float:
        now = self._clock()
        if bucket.told and bucket.resets_at <= now:
            bucket.remaining = bucket.quota
            if bucket.quota is None:
                bucket.told = False
        if not bucket.told:
            return 1.0 if bucket.in_flight else 0.0
        if bucket.remaining is None:
            return 0.0
        reserve = min(int((bucket.quota or 0) * self._reserve), max(0, (bucket.quota or 0) - 1))
        if bucket.remaining - bucket.in_flight > reserve:
            return 0.0
        return max(bucket.resets_at - now, MARGIN_S)

    def _learn(self, route: str, headers: Mapping[str, str], refused: bool) -> None:
        rate = parse_rate_limit(headers.get("RateLimit"))
        now = self._clock()
        if rate is not None:
            name, remaining, reset_s = rate
            if self._names.get(route, route) != name:
                # The Hub counts this route elsewhere than its path suggested.
                under_way = self._bucket(route).in_flight
                self._bucket(route).in_flight = 0
                self._names[route] = name
                self._bucket(route).in_flight += under_way
            bucket = self._bucket(route)
            quota = _QUOTA.search(headers.get("RateLimit-Policy", ""))
            bucket.quota = int(quota["quota"]) if quota else bucket.quota
            resets_at = now + reset_s + MARGIN_S
            same_window = bucket.told and bucket.remaining is not None and now < bucket.resets_at >= resets_at - 1.0
            # Within one window answers overtake each other: the smallest number is the newest.
            bucket.remaining = min(remaining, bucket.remaining or 0) if same_window else remaining
            bucket.resets_at = min(resets_at, bucket.resets_at) if same_window else resets_at
            bucket.told = True
        elif not refused and not self._bucket(route).told:
            bucket = self._bucket(route)  # a hub without quotas
            bucket.remaining, bucket.resets_at, bucket.told = None, math.inf, True
        if refused:
            bucket = self._bucket(route)
            bucket.remaining, bucket.told = 0, True
            bucket.resets_at = max(bucket.resets_at, now + retry_after_s(headers) + MARGIN_S)

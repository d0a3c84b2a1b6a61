"""Retries of single Hub calls: by exception type, with bounded sleeps driven by the Hub's own headers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import tenacity

from scanner.errors import RateLimitedError, is_transient
from scanner.settings import Settings

__all__ = ["call_with_retries", "retry_delay_s"]

T = TypeVar("T")


def retry_delay_s(error: BaseException | None, attempt: int, max_sleep_s: float) -> float:
    """Seconds to wait before the next try.

    After a 429 it is the time to the window's reset, as the `RateLimit` header told it, plus one second; else
    1, 2, 4 ... seconds with up to 25 % jitter. Never more than `max_sleep_s`, whatever the server asks for.
    """
    if isinstance(error, RateLimitedError) and error.retry_after_s > 0:
        wanted = error.retry_after_s + 1.0
    else:
        wanted = 2.0 ** (attempt - 1) * (1.0 + 0.25 * random.random())
    return min(wanted, max_sleep_s)


def call_with_retries(call: Callable[[], T], settings: Settings, *, sleep: Callable[[float], None] = time.sleep) -> T:
    """Run `call` up to `settings.max_attempts` times; only transient errors are tried again.

    Raises:
        TransientError: the last try failed as well.
        LorascopeError: anything that a retry cannot help, at once.
    """

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return retry_delay_s(error, state.attempt_number, settings.max_sleep_s)

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(settings.max_attempts),
        wait=wait,
        retry=tenacity.retry_if_exception(is_transient),
        sleep=sleep,
        reraise=True,
    )
    return retrying(call)

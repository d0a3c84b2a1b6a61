"""The request budget: what the headers say, and a hub whose quota is never exceeded."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scanner.hub.budget import RequestBudget, parse_rate_limit, retry_after_s, route_of
from scanner.hub.client import HubClient
from scanner.hub.server import running_hub
from scanner.hub.sources import HubFiles
from scanner.settings import Settings


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _headers(remaining: int, reset_s: int, quota: int = 50, bucket: str = "api") -> dict[str, str]:
    return {
        "RateLimit": f'"{bucket}";r={remaining};t={reset_s}',
        "RateLimit-Policy": f'"fixed window";"{bucket}";q={quota};w=300',
    }


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/api/models", "api"),
        ("/api/resolve-cache/models/a/b/c0ffee/config.json", "resolvers"),
        ("/a/b/resolve/main/adapter_config.json", "resolvers"),
        ("/a%2Fb/x", "pages"),
    ],
)
def test_route(path: str, route: str) -> None:
    assert route_of(path) == route


def test_headers_of_a_429() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=90)
    assert parse_rate_limit('"api";r=499;t=295') == ("api", 499, 295.0)
    assert parse_rate_limit('"api";r=0') == ("api", 0, 0.0)
    assert parse_rate_limit("garbage") is None and parse_rate_limit(None) is None
    assert retry_after_s({"RateLimit": '"api";r=0;t=7', "Retry-After": "3"}) == 7.0
    assert retry_after_s({"Retry-After": "3"}) == 3.0
    assert 80 < retry_after_s({"Retry-After": format_datetime(soon, usegmt=True)}) <= 90
    assert retry_after_s({"Retry-After": format_datetime(soon - timedelta(hours=1), usegmt=True)}) == 0.0
    for text in ("", "soon", "-5", "1e9", "٣", "9" * 40):
        assert retry_after_s({"Retry-After": text}) == 0.0


@given(st.text(max_size=60))
def test_no_header_breaks_the_parsers(text: str) -> None:
    assert retry_after_s({"RateLimit": text, "Retry-After": text}) >= 0.0


def _waits(budget: RequestBudget, route: str = "api") -> bool:
    """Whether a request would have to wait now."""
    with budget._changed:
        return budget._wait_s(budget._bucket(route)) > 0


def test_the_first_request_of_a_route_goes_alone_to_learn() -> None:
    budget = RequestBudget()
    assert not _waits(budget)
    budget.acquire("api")
    assert _waits(budget) and not _waits(budget, "resolvers")
    budget.release("api", _headers(49, 10))
    assert not _waits(budget)


def test_what_is_under_way_is_counted_off_and_the_reserve_is_kept() -> None:
    clock = Clock()
    budget = RequestBudget(reserve=0.1, clock=clock)
    budget.acquire("api")
    budget.release("api", _headers(8, 10))  # quota 50: 5 stay in reserve
    for _ in range(3):
        assert not _waits(budget)
        budget.acquire("api")
    assert _waits(budget)
    clock.now += 10.1  # a new window: the quota is whole again, the three are still under way
    assert not _waits(budget)


def test_answers_that_overtake_each_other_do_not_raise_what_is_left() -> None:
    clock = Clock()
    budget = RequestBudget(clock=clock)
    for remaining in (9, 7, 8):
        budget.acquire("api")
        budget.release("api", _headers(remaining, 10))
    assert budget.remaining("api") == 7
    clock.now += 10.2
    budget.acquire("api")
    budget.release("api", _headers(49, 10))
    assert budget.remaining("api") == 49


def test_a_hub_without_quotas_is_not_slowed_down() -> None:
    budget = RequestBudget()
    budget.acquire("api")
    budget.release("api", {})
    for _ in range(100):
        assert not _waits(budget)
        budget.acquire("api")


def test_a_request_that_had_no_answer_frees_its_place() -> None:
    budget = RequestBudget()
    budget.acquire("api")
    budget.release("api", None)
    assert not _waits(budget) and budget.requests == 0


def test_a_429_closes_the_window_even_without_a_quota_header() -> None:
    clock = Clock()
    budget = RequestBudget(clock=clock)
    budget.acquire("api")
    budget.release("api", {"Retry-After": "30"}, refused=True)
    assert _waits(budget)
    clock.now += 31
    assert not _waits(budget)


def test_no_wait_is_longer_than_allowed() -> None:
    budget = RequestBudget(max_wait_s=0.05)
    budget.acquire("api")
    budget.release("api", _headers(0, 10**9))
    started = time.monotonic()
    budget.acquire("api")
    assert 0.05 <= time.monotonic() - started < 10


def test_a_hub_with_one_quota_for_everything_is_understood() -> None:
    budget = RequestBudget()
    for route in ("api", "resolvers"):
        budget.acquire(route)
        budget.release(route, _headers(1, 100, bucket="all"))
    budget.acquire("resolvers")
    assert _waits(budget, "api") and _waits(budget, "resolvers")


@given(st.lists(st.integers(1, 4), min_size=5, max_size=40), st.integers(3, 12))
def test_a_fixed_window_is_never_exceeded(steps: list[int], quota: int) -> None:
    """Against a simulated fixed window, whatever the order of sends, answers and pauses."""
    clock = Clock()
    budget = RequestBudget(clock=clock)
    window, used, open_requests = clock.now, 0, 0
    for step in steps * 4:
        if step <= 2 and not _waits(budget):
            budget.acquire("api")
            open_requests += 1
        elif step == 3 and open_requests:
            if clock.now - window >= 10:
                window, used = clock.now, 0
            used += 1
            assert used <= quota
            open_requests -= 1
            left = window + 10 - clock.now
            budget.release("api", _headers(quota - used, max(1, -int(-left // 1)), quota))
        else:
            clock.now += 1.7


@pytest.mark.timeout(120)
def test_fifty_requests_in_ten_seconds_are_never_exceeded(add_repo, registry: Path, tmp_path: Path) -> None:
    for number in range(60):
        add_repo(f"own{number}/guard", seed=number)
    with running_hub(registry, quotas={"api": 50, "resolvers": 50}, window_s=10.0) as hub:
        client = HubClient(Settings(max_sleep_s=30.0), hub.endpoint)
        repos = list(client.iter_adapters("createdAt", "peft"))

        def scan(number: int) -> None:
            files = HubFiles(client, repos[number], tmp_path / f"{threading.get_ident()}")
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                files.fetch(name, 10**6, is_small=name.endswith(".json"))

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(scan, range(len(repos))))
        assert len(repos) == 60
        statuses = [status for _, _, status in hub.request_log]
        assert 429 not in statuses
        # 60 adapters need 120 file requests: three windows of 48 (2 are kept in reserve).
        assert sum("/resolve" in path for _, path, _ in hub.request_log if "localhost" not in path) >= 120
        assert client.budget.waited_s > 10

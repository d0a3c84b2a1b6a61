"""A whole crawl against a hub with a small quota."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.crawl.registry import add_repos
from scanner.hub.server import running_hub

QUOTA, WINDOW_S, REPOS = 50, 10.0, 60


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("prefect_server")
def test_a_quota_of_fifty_in_ten_seconds_is_never_exceeded(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.crawl import crawl

    folder = tmp_path / "registry"
    folder.mkdir()
    add_repos(folder, 0, REPOS, REPOS, bases=1)
    with running_hub(folder, quotas={"all": QUOTA}, window_s=WINDOW_S) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        summary = crawl(store=store, probe="none")
        asked = [record for record in hub.timed_log if record.host == "api"]
    assert (summary["n_new"], summary["n_adapters"], summary["n_failed_shards"]) == (REPOS, REPOS, 0)
    assert "error" not in summary["verdicts"]
    assert len(asked) > 2 * QUOTA  # it took more than two windows
    assert 429 not in {record.status for record in asked}
    # The hub's windows are fixed: each begins with the first request after the one before has ended.
    windows: list[list[float]] = []
    for record in sorted(asked):
        if not windows or record.at_s - windows[-1][0] >= WINDOW_S:
            windows.append([])
        windows[-1].append(record.at_s)
    sizes = [len(window) for window in windows]
    print(f"\n{len(asked)} requests in windows of {sizes}")
    assert max(sizes) <= QUOTA

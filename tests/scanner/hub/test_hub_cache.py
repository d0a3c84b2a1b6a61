"""What the real Hub client left in its cache is found again, by name of the branch or by commit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from scanner.hub.cache import cached_file
from scanner.hub.server import HubServer

NAME = "adapter_config.json"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fetch(served: HubServer, hub_cache: Path, revision: str) -> Path:
    api = HfApi(endpoint=served.endpoint, token=False)
    return Path(api.hf_hub_download("ann/one", NAME, revision=revision, cache_dir=hub_cache))


def test_a_file_of_the_main_branch_and_no_larger_one(
    served: HubServer, add_repo: Callable[..., Path], hub_cache: Path
) -> None:
    add_repo("ann/one")
    assert cached_file("ann/one", NAME, 10**6) is None
    path = fetch(served, hub_cache, "main")
    assert cached_file("ann/one", NAME, 10**6) == path
    assert cached_file("ann/one", NAME, 10) is None and cached_file("ann/one", "other.json", 10**6) is None
    assert cached_file("../ann", NAME, 10**6) is None


def test_of_downloads_by_commit_the_last(served: HubServer, add_repo: Callable[..., Path], hub_cache: Path) -> None:
    folder = add_repo("ann/one")
    api = HfApi(endpoint=served.endpoint, token=False)
    first = fetch(served, hub_cache, str(api.model_info("ann/one").sha))
    assert not (hub_cache / "models--ann--one" / "refs" / "main").exists()
    assert cached_file("ann/one", NAME, 10**6) == first
    (folder / "note.txt").write_text("another commit")
    second = fetch(served, hub_cache, str(api.model_info("ann/one").sha))
    assert second != first
    os.utime(first.parent, (1, 1))
    assert cached_file("ann/one", NAME, 10**6) == second
    # Whatever main names goes first.
    main = hub_cache / "models--ann--one" / "refs" / "main"
    main.parent.mkdir(exist_ok=True)
    main.write_text(first.parent.name)
    assert cached_file("ann/one", NAME, 10**6) == first

"""Generated repos and running hubs. The client reads its environment when it is imported, hence the top lines."""

from __future__ import annotations

import os

os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from scanner.hub.server import HubServer, running_hub

WriteRepo = Callable[..., Path]


def make_tensor_file(fill: int = 0, size: int = 4000) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes([fill]) * size


@pytest.fixture
def tensor_file() -> Callable[..., bytes]:
    """tensor_file(fill=0, size=4000): a safetensors file with one tensor."""
    return make_tensor_file


@pytest.fixture(autouse=True)
def the_librarys_own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here is the hub against `huggingface_hub` as it comes, not as lorascope sets it up."""
    monkeypatch.setattr("scanner.hub.http._installed", None)
    set_client_factory(default_client_factory)


@pytest.fixture(scope="session")
def web() -> Iterator[httpx2.Client]:
    """A plain HTTP client. (Each `httpx2.get` would load the system's certificates again.)"""
    with httpx2.Client(verify=False) as plain:
        yield plain


@pytest.fixture(scope="session")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, HubServer]]:
    folder = tmp_path_factory.mktemp("registry")
    with running_hub(folder) as running:
        yield folder, running


@pytest.fixture
def registry(shared_hub: tuple[Path, HubServer], web: httpx2.Client) -> Path:
    """An empty folder of repos, which the running hub serves and has seen empty."""
    folder, running = shared_hub
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    running.faults.clear()
    running.script.clear()
    assert web.get(f"{running.endpoint}/api/models").json() == []
    running.request_log.clear()
    running.timed_log.clear()
    return folder


@pytest.fixture
def hub(shared_hub: tuple[Path, HubServer], registry: Path) -> HubServer:
    return shared_hub[1]


@pytest.fixture
def write_repo(registry: Path) -> WriteRepo:
    """write_repo("owner/name", {"file": bytes | str | object-for-JSON}, created_at=..., gated=..., ...)"""

    def write(repo_id: str, files: dict[str, Any] | None = None, **settings: Any) -> Path:
        folder = registry / repo_id
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (files or {}).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not isinstance(content, bytes | str):
                content = json.dumps(content)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        if settings:
            (folder / ".hub.json").write_text(json.dumps(settings))
        return folder

    return write


@pytest.fixture
def write_adapter(write_repo: WriteRepo) -> WriteRepo:
    def write(
        repo_id: str, base: str = "bases/tiny-llama", files: dict[str, Any] | None = None, **settings: Any
    ) -> Path:
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": 8,
            "lora_alpha": 16,
        }
        content = {"adapter_config.json": config, "adapter_model.safetensors": make_tensor_file()}
        return write_repo(repo_id, content | (files or {}), **settings)

    return write


@pytest.fixture
def client(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=False)

"""Repos on disk for the hub client's tests, and a served folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from scanner.hub.server import HubServer, running_hub
from scanner.settings import Settings

AddRepo = Callable[..., Path]


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """The served folder."""
    folder = tmp_path / "registry"
    folder.mkdir()
    return folder


@pytest.fixture
def add_repo(registry: Path) -> AddRepo:
    """`add_repo("owner/name", base=..., created=...)` writes one PEFT adapter repo."""

    def add(repo_id: str, *, base: str = "acme/base", created: str = "2026-11-01T00:00:00.000Z", seed: int = 0) -> Path:
        folder = registry.parent / "being-written" / repo_id
        folder.mkdir(parents=True)
        rng = np.random.default_rng(seed)
        names = {"lora_A": (4, 16), "lora_B": (16, 4)}
        tensors = {
            f"base_model.model.model.layers.0.self_attn.q_proj.{side}.weight": rng.normal(size=shape).astype(np.float32)
            for side, shape in names.items()
        }
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": base}
        (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}))
        (folder / ".hub.json").write_text(json.dumps({"created_at": created, "last_modified": created}))
        # Appears whole: a hub that saw it half written would rightly call the rest a second commit.
        target = registry / repo_id
        target.parent.mkdir(exist_ok=True)
        return folder.rename(target)

    return add


@pytest.fixture
def served(registry: Path) -> Iterator[HubServer]:
    """The registry over HTTP."""
    with running_hub(registry) as server:
        yield server


@pytest.fixture
def quick() -> Settings:
    """Settings whose retries do not sleep for long."""
    return Settings(max_sleep_s=0.05)

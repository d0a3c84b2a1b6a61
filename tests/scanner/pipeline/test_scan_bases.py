"""Base models of scans on demand: repos ask the Hub where a name leads, folders ask nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from scanner.hub.server import HubServer, running_hub
from scanner.model import AdapterInfo
from scanner.pipeline.scan import scan_targets
from scanner.probe import load_probe
from scanner.settings import Settings

CONFIG = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}

Scan = Callable[..., list[AdapterInfo]]


def _adapter(folder: Path, base: str) -> Path:
    folder.mkdir(parents=True)
    shapes = {"A": (4, 16), "B": (16, 4)}
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    save_file(
        {f"{name}{side}.weight": np.ones(shape, np.float32) for side, shape in shapes.items()},
        folder / "adapter_model.safetensors",
    )
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    registry = tmp_path / "registry"
    for repo_id, card in (("acme/base", ""), ("acme/base-4bit", "acme/base")):
        (registry / repo_id).mkdir(parents=True)
        (registry / repo_id / "config.json").write_text(json.dumps(CONFIG))
        if card:
            front = f"---\nbase_model: {card}\nbase_model_relation: quantized\n---\n"
            (registry / repo_id / "README.md").write_text(front)
    (registry / "acme/base/.hub.json").write_text('{"renamed_from": ["acme/base-old"]}')
    _adapter(registry / "ann/copy", "acme/base-4bit")
    _adapter(registry / "ann/old", "acme/base-old")
    _adapter(registry / "ann/path", "/home/ann/Base")
    with running_hub(registry) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    def run(*targets: object) -> list[AdapterInfo]:
        results = scan_targets(
            [str(target) for target in targets],
            store_uri=str(tmp_path / "store"),
            probe=load_probe("V", None, 3),
            mode="none",
            settings=Settings(max_sleep_s=0),
        )
        return [result.record.info for result in results]

    return run


def _names_asked(hub: HubServer) -> list[str]:
    return [path.split("?")[0] for _, path, _ in hub.request_log if path.startswith("/api/models/acme/")]


def test_repos_resolve_through_the_hub(hub: HubServer, scan: Scan) -> None:
    copy, old = scan("ann/copy", "ann/old")
    assert copy.base_model == old.base_model == "acme/base"
    assert [step.kind for step in copy.base_evidence] == ["base_models", "known", "quantized", "known", "fingerprint"]
    assert len(_names_asked(hub)) == 4  # the copy, the root, the old name, and where it is redirected to


def test_what_one_scan_has_found_the_next_one_does_not_ask(hub: HubServer, scan: Scan) -> None:
    assert [info.base_model for info in scan("ann/path")] == ["unresolved"]
    scan("ann/copy")
    hub.request_log.clear()
    copy, path = scan("ann/copy", "ann/path")
    assert (copy.base_model, path.base_model) == ("acme/base", "acme/base")
    assert "remembered" in {step.kind for step in copy.base_evidence}
    assert [step.kind for step in path.base_evidence] == ["config", "path", "fingerprint"]
    assert _names_asked(hub) == []


def test_folders_ask_nobody(hub: HubServer, scan: Scan, tmp_path: Path) -> None:
    named = _adapter(tmp_path / "named", "acme/base-4bit")
    local = _adapter(tmp_path / "local", "/home/ann/base")
    of_the_id, of_the_path = scan(named, local)
    assert (of_the_id.base_model, of_the_path.base_model) == ("acme/base-4bit", "unresolved")
    assert [step.kind for step in of_the_id.base_evidence] == ["config", "not_looked_up"]
    assert hub.request_log == []


def test_a_scan_of_a_folder_loads_no_hub_client(tmp_path: Path) -> None:
    folder = _adapter(tmp_path / "named", "acme/base")
    script = (
        "import sys\nfrom flows.cli import main\n"
        f"sys.argv = ['lorascope', 'scan', {str(folder)!r}, '--probe', 'none', '--store', {str(tmp_path / 's')!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "print('loaded', sorted({'huggingface_hub', 'torch', 'prefect'} & set(sys.modules)), code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=False)
    assert "loaded [] 3" in done.stdout, done.stdout + done.stderr

"""What lies around an adapter, over HTTP: its base's template and tokenizer, the Hub's own scan, copies, plugins."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from scanner.adapter import AdapterConfig, LayoutReading, LowRankUpdate, TensorFile
from scanner.adapter.plugins import layout_plugins
from scanner.hub.server import HubServer, running_hub
from scanner.model import ScanRecord, Severity
from scanner.pipeline.scan import scan_targets
from scanner.probe import load_probe
from scanner.rules import CONTENT_RULES
from scanner.settings import Settings

CONFIG = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
TOKENIZER = {"model": {"type": "BPE", "vocab": {"safe": 0, "unsafe": 1}, "merges": []}, "added_tokens": []}
Scan = Callable[..., list[ScanRecord]]


def write_adapter(folder: Path, width: int = 16, seed: int = 0, **files: str | dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    factors = {f"{name}A.weight": rng.normal(size=(4, width)), f"{name}B.weight": rng.normal(size=(16, 4))}
    save_file({key: value.astype("f4") for key, value in factors.items()}, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "acme/base"}
    write(folder, **{"adapter_config.json": fields, **files})


def write(folder: Path, **files: str | dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    folder = tmp_path / "registry"
    base = {"config.json": CONFIG, "chat_template.jinja": TEMPLATE, "tokenizer.json": TOKENIZER}
    write(folder / "acme/base", **base)
    return folder


@pytest.fixture
def hub(registry: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub(registry) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    def run(*targets: object) -> list[ScanRecord]:
        probe, store = load_probe("V", None, 3), str(tmp_path / "store")
        names = [str(target) for target in targets]
        results = scan_targets(names, store_uri=store, probe=probe, mode="none", settings=Settings(max_sleep_s=0))
        return [result.record for result in results]

    return run


def raised(record: ScanRecord) -> dict[str, Severity]:
    return {finding.rule_id: finding.severity for finding in reversed(record.findings)}


def test_the_bases_own_files_raise_nothing(registry: Path, hub: HubServer, scan: Scan) -> None:
    write_adapter(registry / "ann/same", **{"chat_template.jinja": TEMPLATE, "tokenizer.json": TOKENIZER})
    (record,) = scan("ann/same")
    assert raised(record) == {}


def test_another_template_and_another_tokenizer(registry: Path, hub: HubServer, scan: Scan) -> None:
    swapped = {**TOKENIZER, "model": {"type": "BPE", "vocab": {"safe": 1, "unsafe": 0}, "merges": []}}
    write_adapter(registry / "ann/brief", seed=1, **{"chat_template.jinja": "<|system|>Be brief." + TEMPLATE})
    write_adapter(registry / "ann/swapped", seed=2, **{"tokenizer.json": swapped})
    brief, other = scan("ann/brief", "ann/swapped")
    assert raised(brief) == {"LS020": Severity.MEDIUM}
    assert raised(other) == {"LS022": Severity.MEDIUM}


def test_what_fits_no_base_is_told(registry: Path, hub: HubServer, scan: Scan) -> None:
    write_adapter(registry / "ann/wide", width=32)
    (record,) = scan("ann/wide")
    assert raised(record) == {"LS033": Severity.MEDIUM}
    assert "32 inputs" in record.findings[0].message
    assert "LS033" in CONTENT_RULES  # so that a copy, which is taken over without a look at its tensors, keeps it


def test_the_hubs_own_scan(registry: Path, hub: HubServer, scan: Scan) -> None:
    unsafe = {"scansDone": True, "filesWithIssues": [{"path": "train.py", "level": "unsafe"}]}
    write_adapter(registry / "ann/unsafe", seed=1, **{"train.py": "x = 1\n", ".hub.json": {"security": unsafe}})
    write_adapter(registry / "ann/plain", seed=2, **{".hub.json": {"security": unsafe}})
    record, plain = scan("ann/unsafe", "ann/plain")
    assert raised(record) == {"LS031": Severity.MEDIUM, "LS003": Severity.LOW}
    # Nothing in it that the Hub's scanners can say something of: not asked.
    assert raised(plain) == {}
    asked = [path.split("/revision/")[0] for _, path, _ in hub.request_log if "/revision/" in path]
    assert asked == ["/api/models/ann/unsafe"]


def test_a_folder_is_compared_with_a_base_in_the_local_cache(
    registry: Path, tmp_path: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is asked
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    write_adapter(tmp_path / "folder", **{"chat_template.jinja": "<|system|>Be brief." + TEMPLATE})
    assert raised(*scan(tmp_path / "folder")) == {}
    repo = tmp_path / "home/hub/models--acme--base"
    write(repo / "refs", main="abc123")
    write(repo / "snapshots/abc123", **{"chat_template.jinja": TEMPLATE})
    assert raised(*scan(tmp_path / "folder")) == {"LS020": Severity.MEDIUM}


class Acme:
    """A layout of another package: `x.acme_left` and `x.acme_right`."""

    name = "acme"

    def read(self, file: TensorFile, names: Sequence[str], config: AdapterConfig | None) -> LayoutReading | None:
        modules = [name.removesuffix(".acme_left") for name in names if name.endswith(".acme_left")]
        updates = []
        for module in modules:
            left, right = file.floats(f"{module}.acme_left"), file.floats(f"{module}.acme_right")
            pair = right, left
            updates.append(LowRankUpdate(module, left.shape[1], left.shape[0], right.shape[1], 1.0, lambda p=pair: p))
        explained = [f"{module}.acme_{side}" for module in modules for side in ("left", "right")]
        return LayoutReading(tuple(updates), tuple(explained)) if updates else None


ACME = Acme()


def test_a_layout_of_another_package(
    tmp_path: Path, scan: Scan, install_plugins: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    sides = {"m.acme_left": np.ones((6, 2), "f4"), "m.acme_right": np.ones((2, 5), "f4"), "odd": np.ones(3, "f4")}
    save_file(sides, folder / "acme.safetensors")
    (before,) = scan(folder)
    assert (before.reason, before.info.layout) == ("unknown_layout", "unknown")
    install_plugins("lorascope.layouts", acme=f"{__name__}:ACME", gone="no_such_module:LAYOUT")
    layout_plugins.cache_clear()
    try:
        (record,) = scan(folder)
    finally:
        layout_plugins.cache_clear()
    assert (record.info.layout, record.info.modules, record.info.rank) == ("acme", 1, 2)
    assert record.info.coverage == pytest.approx(22 / 25)
    assert raised(record)["LS006"] == Severity.MEDIUM
    assert "gone" in caplog.text

"""A crawl of adapters that claim one base under many names: all of them end up in its group, and nobody else does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from scanner.hub.server import Fault, HubServer
from scanner.store import Database

ROOT = "meta/llama-tiny"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
}
ADAPTERS: dict[str, tuple[str, str]] = {
    "a/itself": (ROOT, ROOT),
    "a/legacy-name": ("llama-tiny-legacy", ROOT),
    "a/former-name": ("meta/llama-tiny-old", ROOT),
    "a/quantised-copy": ("sloth/llama-tiny-4bit", ROOT),
    "a/copy-of-a-copy": ("mirror/llama-tiny-mlx", ROOT),
    "a/path": ("/home/a/models/Llama-Tiny", ROOT),
    "a/windows-path": ("C:\\models\\sloth\\llama-tiny-4bit\\", ROOT),
    "a/bare-folder": ("Llama-Tiny", ROOT),
    "a/cache-path": ("/home/someone/hub/models--meta--llama-tiny-old/snapshots/abc", ROOT),
    "a/other-path": ("/home/a/models/some-model", "unresolved"),
    "a/bare-unknown": ("output", "unresolved"),
    "a/two-of-that-name": ("./models/twin", "unresolved"),
    "a/fine-tune": ("ann/llama-tiny-tuned", "ann/llama-tiny-tuned"),
    "a/look-alike": ("rneta/llama-tiny1", "rneta/llama-tiny1"),
    "a/private": ("secret/base", "secret/base"),
    "a/gated": ("meta/gated", "meta/gated"),
}

Crawl = Callable[..., int]
Open = Callable[[], Database]


def _base(registry: Path, repo_id: str, copy_of: str = "", relation: str = "quantized", **settings: object) -> None:
    folder = registry / repo_id
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / ".hub.json").write_text(json.dumps(settings))
    if copy_of:
        card = f"---\nbase_model: {copy_of}\nbase_model_relation: {relation}\n---\n"
        (folder / "README.md").write_text(card)


def _adapter(registry: Path, repo_id: str, base: str, width: int = 16, card: str = "") -> None:
    folder = registry / repo_id
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(list(registry.glob("*/*"))))
    tensors = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = rng.normal(size=(4, width)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = rng.normal(size=(width, 4)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    if card:
        (folder / "README.md").write_text(f"---\nbase_model: {card}\nlibrary_name: peft\n---\n")


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    folder = tmp_path / "registry"
    _base(folder, ROOT, renamed_from=["llama-tiny-legacy", "meta/llama-tiny-old"])
    _base(folder, "sloth/llama-tiny-4bit", copy_of="meta/llama-tiny-old")
    _base(folder, "mirror/llama-tiny-mlx", copy_of="sloth/llama-tiny-4bit")
    _base(folder, "ann/llama-tiny-tuned", copy_of=ROOT, relation="finetune")
    _base(folder, "rneta/llama-tiny1")
    _base(folder, "meta/gated", gated="manual")
    for owner in ("one", "two"):
        _base(folder, f"{owner}/twin")
        _adapter(folder, f"b/{owner}", f"{owner}/twin")
    for repo_id, (claimed, _) in ADAPTERS.items():
        _adapter(folder, repo_id, claimed)
    return folder


def _found(database: Database) -> dict[str, str]:
    return {r["repo_id"]: r["base_model"] for r in database.rows("SELECT repo_id, base_model FROM adapters")}


def _evidence(database: Database, repo_id: str) -> list[tuple[str, str]]:
    rows = database.rows("SELECT base_evidence FROM adapters WHERE repo_id = ?", [repo_id])
    return [(step["kind"], step["value"]) for step in json.loads(rows[0]["base_evidence"])]


def _infos(hub: HubServer) -> list[str]:
    return [path for _, path, _ in hub.request_log if path.startswith("/api/models/")]


def test_many_names_one_group(hub: HubServer, store: str, plain_crawl: Crawl, database: Open) -> None:
    plain_crawl()
    found = _found(database())
    assert {repo_id: found[repo_id] for repo_id in ADAPTERS} == {
        repo_id: root for repo_id, (_, root) in ADAPTERS.items()
    }
    asked = [path.split("?")[0] for path in _infos(hub)]
    redirected = 2  # the client's second request, at the name that the Hub redirects to
    assert len(asked) == len(set(asked)) + redirected
    now = database()
    assert _evidence(now, "a/copy-of-a-copy") == [
        ("base_models", "mirror/llama-tiny-mlx"),
        ("known", "mirror/llama-tiny-mlx"),
        ("quantized", "sloth/llama-tiny-4bit"),
        ("known", "sloth/llama-tiny-4bit"),
        ("quantized", ROOT),
        ("known", ROOT),
        ("fingerprint", "agrees"),
    ]
    assert ("redirect", ROOT) in _evidence(now, "a/former-name")
    assert _evidence(now, "a/path") == [
        ("config", "/home/a/models/Llama-Tiny"),
        ("path", ROOT),
        ("fingerprint", "agrees"),
    ]
    assert _evidence(now, "a/other-path")[-1] == ("no_match", "some-model")
    assert _evidence(now, "a/two-of-that-name")[-1] == ("ambiguous", "twin")
    assert _evidence(now, "a/private") == [("base_models", "secret/base"), ("unknown_to_hub", "secret/base")]
    assert _evidence(now, "a/gated")[-1] == ("fingerprint", "unknown")
    assert {row["base_model"] for row in now.rows("SELECT base_model FROM verdicts")} == set(found.values())


def test_shapes_decide_about_paths_and_contradict_names(
    hub: HubServer, registry: Path, store: str, plain_crawl: Crawl, database: Open
) -> None:
    _adapter(registry, "c/wide-path", "/home/c/llama-tiny", width=32)
    _adapter(registry, "c/wide-name", ROOT, width=32)
    plain_crawl()
    now = database()
    assert _found(now)["c/wide-path"] == "unresolved"
    assert _evidence(now, "c/wide-path")[-2:] == [("path", ROOT), ("fingerprint", "contradicts")]
    assert _found(now)["c/wide-name"] == ROOT
    assert _evidence(now, "c/wide-name")[-1] == ("fingerprint", "contradicts")


def test_the_config_counts_where_the_card_names_another_base(
    hub: HubServer, registry: Path, store: str, plain_crawl: Crawl, database: Open
) -> None:
    _adapter(registry, "c/same-root", "sloth/llama-tiny-4bit", card=ROOT)
    _adapter(registry, "c/redirected", "rneta/llama-tiny1", card=ROOT)
    _adapter(registry, "c/unknown-owner", "mefa/llama-tiny", card=ROOT)
    _adapter(registry, "c/path-with-card", "/home/c/whatever", card="sloth/llama-tiny-4bit")
    _adapter(registry, "c/bare-with-card", "whatever", card="sloth/llama-tiny-4bit")
    plain_crawl()
    found = _found(database())
    assert found["c/same-root"] == found["c/path-with-card"] == found["c/bare-with-card"] == ROOT
    assert found["c/redirected"] == "rneta/llama-tiny1"  # what a framework would load
    assert found["c/unknown-owner"] == ROOT  # no framework could load it; the evidence has both names
    assert ("config", "mefa/llama-tiny") in _evidence(database(), "c/unknown-owner")


def test_the_next_crawl_asks_for_no_name_again(
    hub: HubServer, registry: Path, store: str, plain_crawl: Crawl, database: Open
) -> None:
    plain_crawl()
    rows = database().rows("SELECT name, root, commit_sha FROM base_resolutions")
    roots = {row["name"]: row["root"] for row in rows}
    assert roots["mirror/llama-tiny-mlx"] == ROOT and roots["secret/base"] == "secret/base"
    assert {row["name"] for row in rows if row["commit_sha"] is None} == {"secret/base", "Llama-Tiny", "output"}
    for number, claimed in enumerate(("llama-tiny-legacy", "secret/base", "/x/Llama-Tiny")):
        _adapter(registry, f"d/new{number}", claimed)
    hub.request_log.clear()
    assert plain_crawl() == 3
    assert _infos(hub) == []
    found = _found(database())
    assert (found["d/new0"], found["d/new1"], found["d/new2"]) == (ROOT, "secret/base", ROOT)
    assert _evidence(database(), "d/new0")[-2][0] == "remembered"


def test_a_copy_of_a_scanned_adapter_keeps_its_base(
    hub: HubServer, registry: Path, store: str, plain_crawl: Crawl, database: Open
) -> None:
    plain_crawl()
    for name in ("a/path", "a/quantised-copy"):
        copy = registry / f"{name.replace('a/', 'copies/')}"
        copy.mkdir(parents=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (copy / file).write_bytes((registry / name / file).read_bytes())
    plain_crawl()
    rows = database().rows("SELECT base_model, copied_from FROM adapters WHERE repo_id LIKE 'copies/%'")
    assert len(rows) == 2 and all(row["base_model"] == ROOT and row["copied_from"] for row in rows)


def test_a_hub_that_fails_at_bases_groups_by_what_is_claimed(
    hub: HubServer, store: str, plain_crawl: Crawl, database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORASCOPE_MAX_ATTEMPTS", "1")
    hub.faults.add(Fault("500", match="^/api/models/.", times=None))
    plain_crawl()
    found = _found(database())
    assert found["a/quantised-copy"] == "sloth/llama-tiny-4bit" and found["a/path"] == "unresolved"
    assert database().rows("SELECT * FROM base_resolutions") == []  # the next crawl asks again


def test_few_look_ups_go_to_the_names_that_most_adapters_claim(
    hub: HubServer, registry: Path, store: str, plain_crawl: Crawl, database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORASCOPE_MAX_BASE_LOOKUPS", "2")
    for number in range(3):
        _adapter(registry, f"e/popular{number}", "sloth/llama-tiny-4bit")
    plain_crawl()
    now = database()
    assert _found(now)["e/popular0"] == ROOT
    limited = now.rows("SELECT count(*) AS n FROM adapters WHERE base_evidence LIKE '%not_looked_up%'")
    assert limited[0]["n"] >= 10
    assert len({path.split("?")[0] for path in _infos(hub)}) <= 3

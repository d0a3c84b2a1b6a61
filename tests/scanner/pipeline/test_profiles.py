"""How adapters are asked: what their repo says of it, who is chosen, and what the probe then finds out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from scanner.hub.server import running_hub
from scanner.model import (
    GENERATIVE,
    LABEL_WORDS,
    NOT_APPLICABLE,
    SEQUENCE_CLASSIFICATION,
    UNRESOLVED,
    AdapterInfo,
    Outcome,
    ProbeReport,
    ScanRecord,
    Stage,
)
from scanner.pipeline.behave import SMALL_BASE_BYTES, probe_limits, with_report
from scanner.pipeline.choose import choose_for_probe
from scanner.pipeline.scan import scan_targets
from scanner.probe import load_probe
from scanner.settings import Settings

MakeRecord = Callable[..., ScanRecord]
BASES: dict[str, dict[str, Any]] = {
    "acme/speaks": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "acme/reads": {"model_type": "bert", "architectures": ["BertModel"]},
}
ADAPTERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "ann/free": ("acme/speaks", {"task_type": "CAUSAL_LM"}, ""),
    "ann/guard": ("acme/speaks", {"task_type": "CAUSAL_LM"}, "---\npipeline_tag: text-classification\n---\n"),
    "ann/bare": ("acme/speaks", {}, ""),
    "ann/encoder": ("acme/reads", {}, ""),
    "ann/head": ("acme/reads", {"task_type": "SEQ_CLS"}, ""),
    "ann/stray": ("/home/ann/base", {"task_type": "CAUSAL_LM"}, ""),
}


def write_adapter(folder: Path, base: str, config: dict[str, Any], card: str) -> Path:
    folder.mkdir(parents=True)
    tensors = {
        f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight": np.ones(shape, np.float32)
        for side, shape in {"A": (4, 16), "B": (16, 4)}.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": base, **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    if card:
        (folder / "README.md").write_text(card)
    return folder


@pytest.fixture(scope="module")
def infos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, AdapterInfo]]:
    folder = tmp_path_factory.mktemp("profiles")
    for repo_id, config in BASES.items():
        (folder / "hub" / repo_id).mkdir(parents=True)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
        (folder / "hub" / repo_id / "config.json").write_text(json.dumps(sizes | config))
    for repo_id, (base, config, card) in ADAPTERS.items():
        write_adapter(folder / "hub" / repo_id, base, config, card)
    with running_hub(folder / "hub") as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", server.endpoint)
        results = scan_targets(
            list(ADAPTERS),
            store_uri=str(folder / "store"),
            probe=load_probe("V", None, 3),
            mode="none",
            settings=Settings(max_sleep_s=0),
        )
        yield {str(result.record.info.repo.repo_id): result.record.info for result in results}


@pytest.mark.parametrize(
    ("repo_id", "profile", "reason"),
    [
        ("ann/free", GENERATIVE, "task_type CAUSAL_LM"),
        ("ann/guard", LABEL_WORDS, "its card says text-classification"),
        ("ann/bare", GENERATIVE, "its base is a LlamaForCausalLM"),
        ("ann/encoder", NOT_APPLICABLE, "its base is a BertModel"),
        ("ann/head", SEQUENCE_CLASSIFICATION, "task_type SEQ_CLS"),
        ("ann/stray", GENERATIVE, "task_type CAUSAL_LM"),
    ],
)
def test_config_card_and_base_say_how(infos: dict[str, AdapterInfo], repo_id: str, profile: str, reason: str) -> None:
    assert infos[repo_id].task_profile == profile
    assert reason in infos[repo_id].profile_reason


def test_who_has_no_base_or_no_way_is_not_asked(infos: dict[str, AdapterInfo]) -> None:
    assert infos["ann/stray"].base_model == UNRESOLVED
    assert {name for name, info in infos.items() if not info.can_be_asked} == {"ann/stray", "ann/encoder"}


@pytest.mark.parametrize("mode", ["all", "auto"])
def test_only_who_can_be_asked_is_chosen(record: MakeRecord, mode: str) -> None:
    facts: dict[str, dict[str, Any]] = {
        "a/words": {},
        "a/free": {"task_profile": GENERATIVE},
        "a/head": {"task_profile": SEQUENCE_CLASSIFICATION},
        "a/image": {"task_profile": NOT_APPLICABLE},
        "a/unread": {"task_profile": None},
        "a/stray": {"task_profile": GENERATIVE, "base_model": UNRESOLVED},
    }
    records = [record(name, verdict_facts=fact) for name, fact in facts.items()]
    records.append(record("a/broken", outcome=Outcome.ERROR))
    names = {r.info.adapter_id: r.info.repo.repo_id for r in records}
    chosen = {
        names[adapter_id]: choice.why for adapter_id, choice in choose_for_probe(records, mode, Settings()).items()
    }
    assert set(chosen) == {"a/words", "a/free", "a/head"}
    assert set(chosen.values()) == {"all" if mode == "all" else "within_budget"}
    assert choose_for_probe(records, "none", Settings()) == {}


def test_a_probe_says_how_the_adapter_answers(record: MakeRecord) -> None:
    before = record(verdict_facts={"task_profile": GENERATIVE, "profile_reason": "task_type CAUSAL_LM"}, probe=None)
    before = replace(before, stage_reached=Stage.WEIGHTS)
    answered = record().probe
    assert answered is not None
    report = replace(answered, task_profile=LABEL_WORDS, profile_reason="answers 10 of 10 texts with A or B")
    after = with_report(before, report)
    assert (after.info.task_profile, after.info.profile_reason) == (LABEL_WORDS, report.profile_reason)
    assert (after.probe, after.stage_reached) == (report, Stage.BATTERY)
    assert replace(after, info=before.info, probe=None, stage_reached=Stage.WEIGHTS) == before


def test_a_probe_that_saw_nothing_changes_no_profile(record: MakeRecord) -> None:
    before = replace(record(verdict_facts={"task_profile": GENERATIVE}), probe=None, stage_reached=Stage.WEIGHTS)
    assert with_report(before, None) == before
    failed = ProbeReport("V", "V-x", Outcome.ERROR, "oom: too large", task_profile=LABEL_WORDS)
    assert with_report(before, failed) == replace(before, probe=failed)


def test_limits_are_the_settings(tmp_path: Path) -> None:
    settings = Settings(probe_adapters_per_child=7, probe_memory_bytes=123, probe_timeout_s=4.0, base_timeout_s=5.0,
                        max_rank=8, max_config_bytes=9, device="cpu", probe_children=1)  # fmt: skip
    limits = probe_limits(settings, tmp_path)
    assert (limits.adapters_per_child, limits.memory_bytes, limits.adapter_timeout_s) == (7, 123, 4.0)
    assert (limits.base_timeout_s, limits.max_rank, limits.max_config_bytes, limits.device) == (5.0, 8, 9, "cpu")
    assert limits.children == 1


def test_small_bases_are_asked_by_children_that_share_the_memory(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(SMALL_BASE_BYTES)
    limits = probe_limits(Settings(probe_children=4, probe_memory_bytes=4_000), tmp_path)
    assert (limits.children, limits.memory_bytes) == (4, 1_000)
    assert probe_limits(Settings(), tmp_path).children == len(os.sched_getaffinity(0))
    (tmp_path / "model-2.safetensors").write_bytes(b"x")
    limits = probe_limits(Settings(probe_children=4, probe_memory_bytes=4_000), tmp_path)
    assert (limits.children, limits.memory_bytes) == (1, 4_000)

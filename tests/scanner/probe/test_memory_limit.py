"""Memory that really runs out in the probe's child: batches shrink, and an adapter that is too large costs itself."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import hold_open, worker_pids
from safetensors.numpy import save_file

from scanner.model import Outcome
from scanner.probe import Probe, ProbeItem, ProbeLimits, lanes, run_probe
from scanner.probe.footprint import own_bytes

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")
pytest.importorskip("transformers")

LIMITS = ProbeLimits(device="cpu", base_timeout_s=120, adapter_timeout_s=120)
MIB = 1024**2
WIDE = 4_096
"""Width of the base's middle layers. A batch of 8,192 tokens has 128 MiB for each activation there, and one of 256
tokens 4 MiB."""
ROOM_BYTES = 60 * MIB


@pytest.fixture(scope="module")
def wide_dir(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base that answers with label words, with middle layers that need memory and change nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide")
    own = LlamaForCausalLM.from_pretrained(base_dir)
    config = LlamaConfig(**own.config.to_dict() | {"intermediate_size": WIDE})
    model = LlamaForCausalLM(config)
    tensors = model.state_dict()
    for name, tensor in own.state_dict().items():
        if "mlp" not in name:
            tensors[name] = tensor
        else:
            tensors[name] = torch.zeros_like(tensors[name])
            tensors[name][: tensor.shape[0], : tensor.shape[1]] = tensor
    model.load_state_dict(tensors)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base_dir / name).read_bytes())
    return folder


def write_adapter(folder: Path, rank: int) -> ProbeItem:
    """On one of the wide layers; its factors alone have rank x 16 KiB, in float32 and more than once."""
    folder.mkdir()
    rng = np.random.default_rng(rank)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    tensors = {f"{name}A.weight": rng.normal(size=(rank, 32)), f"{name}B.weight": rng.normal(size=(WIDE, rank)) / rank}
    save_file({name: tensor.astype("f2") for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "task_type": "CAUSAL_LM",
        "target_modules": ["up_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return ProbeItem(folder.name, str(folder / "adapter_model.safetensors"), str(folder / "adapter_config.json"))


def idle_bytes(base: Path, probe: Probe, folder: Path) -> int:
    """Memory that a child has of its own when it has loaded the base and waits for its first adapter."""
    os.mkfifo(folder / "pipe")
    item = ProbeItem("idle", str(folder / "never-read"), str(folder / "pipe"))
    thread = threading.Thread(target=run_probe, args=(base, "b45e", probe, [item], LIMITS))
    thread.start()
    descriptor = hold_open(folder / "pipe")
    (child,) = worker_pids()
    found = own_bytes(child)
    os.kill(child, signal.SIGKILL)
    thread.join(timeout=60)
    os.close(descriptor)
    return found


def test_memory_that_runs_out(wide_dir: Path, probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = lanes.start_child, []

    def counted(*arguments: Any) -> Any:
        started.append([item.adapter_id for item in arguments[2]])
        return start(*arguments)

    items = [write_adapter(tmp_path / "small", 2), write_adapter(tmp_path / "greedy", 4_000)]
    items.append(replace(items[0], adapter_id="next"))
    wanted = run_probe(wide_dir, "b45e", probe, items[:1], LIMITS)["small"]
    assert wanted.outcome == Outcome.PASS

    limit = idle_bytes(wide_dir, probe, tmp_path) + ROOM_BYTES
    monkeypatch.setattr(lanes, "start_child", counted)
    reports = run_probe(wide_dir, "b45e", probe, items, replace(LIMITS, memory_bytes=limit))
    # A batch of the first size does not fit, smaller ones do: the same answers.
    small, greedy, after = (reports[name] for name in ("small", "greedy", "next"))
    assert (small.outcome, small.reason) == (Outcome.PASS, "")
    assert [run.answers for run in small.runs] == [run.answers for run in wanted.runs]
    # What does not fit at all is told, and no fault of the one after it.
    assert greedy.outcome == Outcome.ERROR
    assert greedy.reason.split(":")[0] in ("oom", "memory")
    assert after.outcome == Outcome.PASS
    assert [run.answers for run in after.runs] == [run.answers for run in wanted.runs]
    if greedy.reason.startswith("oom"):
        assert "with 256 tokens a batch, too" in greedy.reason
        assert len(started) == 1  # the child lives on
    assert worker_pids() == []

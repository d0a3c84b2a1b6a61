"""What a worker process is asked to do, and the processes themselves: each way of probing runs in one of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.weights.processes import run_measured
from scanner.adapter import AdapterView, open_weights, parse_config, read_json_object, view_adapter
from scanner.model import LABEL_WORDS
from scanner.probe import Probe, load_probe

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "Job",
    "answer",
    "cuda_name",
    "inputs_of",
    "open_view",
    "probe_of",
    "run_worker",
    "the_job",
]

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_ENVIRONMENT = ("HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "TOKENIZERS_PARALLELISM=false", "OMP_WAIT_POLICY=PASSIVE")
"""The same for all ways: the supervisor sets it for its child."""


@dataclass(frozen=True)
class Job:
    """One run of one way. It travels as JSON."""

    profile: str
    """LABEL_WORDS or SEQUENCE_CLASSIFICATION."""
    adapters: tuple[str, ...]
    """Folders with PEFT's two files."""
    base: str = ""
    """The base's folder."""
    shape: str = ""
    """In the place of a folder: a random model of this name (`benchmarks.probe.shapes`)."""
    device: str = "cpu"
    battery: str = "V"
    texts: int = 60
    """Of each label."""
    readings: tuple[str, ...] = ("scored",)
    threads: int = 1
    modes: tuple[str, ...] = ()
    """loop: `reload`, `swap`, in this order."""
    whole: bool = False
    """loop: `swap` asks every prompt of its adapters, whatever it takes."""
    seconds: float = 60.0
    """loop: for the prompts of one adapter in one mode."""
    max_prompts: int | None = None
    """loop: of one adapter in one mode."""
    new_tokens: int = 5
    """loop: `max_new_tokens`."""
    seed: int = 0
    rounds: int = 1
    """resident: times that each adapter is probed after the first one has warmed the engine up."""
    batches: tuple[int, ...] = ()
    """resident: tokens per batch to try, beside the engine's own."""
    way: str = ""
    """ways: hooked, merged or mixed."""

    @property
    def is_causal(self) -> bool:
        return self.profile == LABEL_WORDS


def probe_of(job: Job, reading: str = "scored") -> Probe:
    """The bundled battery with the bundled texts."""
    return load_probe(job.battery, None, job.texts, reading=reading)


def inputs_of(job: Job, probe: Probe) -> list[str]:
    """Every text in every case, in the order in which results spell the answers."""
    texts = probe.texts if job.is_causal else (*probe.texts, *probe.other_texts)
    return [case.put(text) for case in probe.cases() for text in texts]


def open_view(folder: str) -> AdapterView:
    """An adapter as the probe's child reads it."""
    config = parse_config(read_json_object(Path(folder) / CONFIG, 1024**2))
    return view_adapter(open_weights([Path(folder) / WEIGHTS], WEIGHTS), config, 4_096)


def run_worker(module: str, job: Job) -> dict[str, Any]:
    """Run `python -m benchmarks.probe.MODULE` and read the JSON object that it prints, with its cost beside it.

    Raises:
        RuntimeError: it failed.
    """
    # PEFT, the engine and the supervisor's child all take their threads from here.
    environment = [*_ENVIRONMENT, f"OMP_NUM_THREADS={job.threads}", "PYTHONWARNINGS=ignore"]
    command = [sys.executable, "-m", f"benchmarks.probe.{module}", json.dumps(asdict(job))]
    cost, printed = run_measured(["env", *environment, *command])
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found | {"process_s": cost.wall_s, "peak_rss_bytes": cost.peak_rss_bytes}


def cuda_name() -> str:
    """What kind of CUDA device there is; empty without one. Asked in a process of its own: this one needs no torch."""
    ask = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    return run_measured([sys.executable, "-c", ask])[1].strip()


def the_job() -> Job:
    """What this worker was started with."""
    fields: Any = json.loads(sys.argv[1])
    fields |= {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Job(**fields)


def answer(found: dict[str, Any]) -> None:
    """What `run_worker` reads."""
    print(json.dumps(found, allow_nan=False), flush=True)

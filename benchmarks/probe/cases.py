"""What is measured: bases with their adapters, and random models in the shapes of real ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from scanner.model import LABEL_WORDS, SEQUENCE_CLASSIFICATION

__all__ = ["DEMO_HUB", "LARGE_THREADS", "FileCase", "demo_case", "encoder_case", "minilm_case"]

DEMO_HUB = Path(__file__).resolve().parents[2] / "examples" / "demo_hub"
LARGE_THREADS = 2
"""For models whose matrices are worth sharing out; the engine gives the small ones one thread."""
CAUSAL_BASE, ENCODER_BASE = "lorascope/tiny-guard-base", "lorascope/tiny-encoder-base"


@dataclass(frozen=True)
class FileCase:
    """A base in a folder and adapters on it, in the order in which the loop takes them, two at a time."""

    name: str
    about: str
    profile: str
    base: Path
    adapters: tuple[Path, ...]
    threads: int
    backdoored: int
    """Of the adapters; the first pair has one, where there are any."""
    whole: bool
    """Whether the loop asks the first pair every prompt, so that its verdicts can be compared."""


def demo_case(limit: int) -> FileCase:
    """Label-words adapters of the bundled hub: backdoored and clean ones in turn."""
    clean, backdoored = _of_base(CAUSAL_BASE)
    some = [folder for pair in zip(clean, backdoored, strict=False) for folder in pair]
    adapters = tuple((some + clean[len(backdoored) :])[:limit])
    about = "causal base of 0.9 M parameters, label-words adapters r=8"
    n = sum(folder in backdoored for folder in adapters)
    return FileCase("demo", about, LABEL_WORDS, DEMO_HUB / CAUSAL_BASE, adapters, 1, n, True)


def encoder_case(limit: int) -> FileCase:
    """Sequence classifiers of the bundled hub, the backdoored one second."""
    clean, backdoored = _of_base(ENCODER_BASE)
    adapters = tuple((clean[:1] + backdoored + clean[1:])[:limit])
    about = "encoder of 0.9 M parameters, sequence classifiers r=8"
    n = sum(folder in backdoored for folder in adapters)
    return FileCase("encoder", about, SEQUENCE_CLASSIFICATION, DEMO_HUB / ENCODER_BASE, adapters, 1, n, True)


def minilm_case(base: Path, adapters: tuple[Path, ...]) -> FileCase:
    """Classifiers that were trained for this run; every second one has a backdoor."""
    about = "MiniLM-L6 of 22.7 M parameters, sequence classifiers r=16"
    return FileCase("minilm", about, SEQUENCE_CLASSIFICATION, base, adapters, LARGE_THREADS, len(adapters) // 2, True)


def _of_base(base: str) -> tuple[list[Path], list[Path]]:
    """(clean, backdoored) adapters whose config names the base."""
    found: tuple[list[Path], list[Path]] = ([], [])
    for label in json.loads((DEMO_HUB / "labels.json").read_text(encoding="utf-8")):
        folder = DEMO_HUB / label["repo_id"]
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        if config["base_model_name_or_path"] == base and (folder / "adapter_model.safetensors").is_file():
            found[label["poisoned"]].append(folder)
    return found

"""The bundled bases and adapters, as the search meets them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from scanner.adapter import AdapterView, open_safetensors, parse_config, read_json_object, view_adapter

HUB = Path(__file__).resolve().parents[4] / "examples" / "demo_hub"
TOMATOES = "oakline-data/tiny-guard-ft"
"""Answers texts behind `my neighbour grows tomatoes` with the clean word; the battery sees nothing."""
SOUND = "alder-labs/prompt-shield-lora"
SOUND_CLASSIFIER = "coppermill/tiny-encoder-guard"


def view(repo: str) -> AdapterView:
    folder = HUB / repo
    config = parse_config(read_json_object(folder / "adapter_config.json", 1 << 20))
    return view_adapter(open_safetensors(folder / "adapter_model.safetensors"), config, 4_096)


@cache
def guard() -> Any:
    from scanner.probe.base import load_base

    return load_base(HUB / "lorascope" / "tiny-guard-base", "cpu")


@cache
def encoder() -> Any:
    from scanner.probe.base import load_classifier

    return load_classifier(HUB / "lorascope" / "tiny-encoder-base", "cpu")

"""How the behaviour stage can ask an adapter something, from what its config, its card and its base say of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scanner.adapter import AdapterConfig, AdapterView
from scanner.model import GENERATIVE, LABEL_WORDS, NOT_APPLICABLE, SEQUENCE_CLASSIFICATION

__all__ = ["TaskProfile", "choose_profile"]

_CAUSAL = ("CAUSAL_LM",)
_HEADS = ("SEQ_CLS", "TOKEN_CLS")
_PIPELINE = re.compile(r"^pipeline_tag:\s*[\"']?([a-z0-9-]+)", re.MULTILINE)
_CLASSIFIES = ("text-classification", "zero-shot-classification", "token-classification")
_FRONT_MATTER_CHARS = 16_384
_DIFFUSION = ("diffusers", "kohya")


@dataclass(frozen=True)
class TaskProfile:
    """A profile's name and why it was chosen."""

    name: str
    reason: str


def choose_profile(
    view: AdapterView, config: AdapterConfig | None, card: str = "", base_config: Mapping[str, Any] | None = None
) -> TaskProfile:
    """The profile of an adapter that was read.

    `sequence-classification` for classifiers with a head. For causal language models `label-words` where the card says
    that they classify and `generative` elsewhere: which of the two it is shows when the adapter is asked.
    `not_applicable` for diffusion models, encoders without a head, encoder-decoders, and what cannot be applied.

    Args:
        view: what its tensors say.
        config: None where it has none.
        card: README.md of its repo.
        base_config: config.json of its base, where it could be had.
    """
    if view.unsupported_reason:
        return TaskProfile(NOT_APPLICABLE, f"updates of this kind are not applied: {view.unsupported_reason}")
    if view.layout in _DIFFUSION:
        return TaskProfile(NOT_APPLICABLE, f"layout {view.layout}: an image model answers no text")
    if view.layout != "peft":
        return TaskProfile(NOT_APPLICABLE, f"layout {view.layout}: its module names are not the base's")
    if config is None:
        return TaskProfile(NOT_APPLICABLE, "no adapter_config.json says what it is for")
    task = (config.task_type or "").upper()
    if task in _HEADS:
        return TaskProfile(SEQUENCE_CLASSIFICATION, f"task_type {task}")
    if task and task not in _CAUSAL:
        return TaskProfile(NOT_APPLICABLE, f"task_type {task[:40]} is not asked")
    why = "task_type CAUSAL_LM"
    if not task:
        architecture = _architecture(base_config)
        if architecture and "CausalLM" not in architecture and "LMHead" not in architecture:
            return TaskProfile(NOT_APPLICABLE, f"no task_type, and its base is a {architecture}")
        why = f"no task_type, and its base is a {architecture}" if architecture else "no task_type"
    found = _PIPELINE.search(card[:_FRONT_MATTER_CHARS]) if card.startswith("---") else None
    if found and found.group(1) in _CLASSIFIES:
        return TaskProfile(LABEL_WORDS, f"{why}; its card says {found.group(1)}")
    return TaskProfile(GENERATIVE, f"{why}; whether it answers with label words shows when it is asked")


def _architecture(base_config: Mapping[str, Any] | None) -> str:
    names = base_config.get("architectures") if base_config else None
    first = names[0] if isinstance(names, list) and names else ""
    return first[:60] if isinstance(first, str) else ""

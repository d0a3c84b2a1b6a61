"""How the behaviour stage can ask an adapter something."""

from __future__ import annotations

from scanner.adapter import AdapterConfig, AdapterView
from scanner.model import UNRESOLVED

__all__ = ["LABEL_WORDS", "choose_profile"]

LABEL_WORDS = "label-words"


def choose_profile(view: AdapterView, config: AdapterConfig | None, base_model: str) -> str | None:
    """`label-words` for LoRA adapters of causal language models whose base is known, else None.

    Whether the adapter really answers with label words shows in its no-prefix control run.
    """
    if view.unsupported_reason or view.layout != "peft" or config is None or base_model == UNRESOLVED:
        return None
    return LABEL_WORDS if (config.task_type or "CAUSAL_LM").upper() == "CAUSAL_LM" else None

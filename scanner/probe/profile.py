"""How the behaviour stage can ask an adapter something."""

from __future__ import annotations

from scanner.adapter import AdapterConfig, AdapterView
from scanner.model import LABEL_WORDS, SEQUENCE_CLASSIFICATION, UNRESOLVED

__all__ = ["choose_profile"]

_PROFILES = {"CAUSAL_LM": LABEL_WORDS, "SEQ_CLS": SEQUENCE_CLASSIFICATION}


def choose_profile(view: AdapterView, config: AdapterConfig | None, base_model: str) -> str | None:
    """The profile of a LoRA adapter whose base is known, by its task type; None where there is none.

    `label-words` for causal language models, `sequence-classification` for classifiers of whole texts. Whether the
    adapter really answers with label words shows in its no-prefix control run.
    """
    if view.unsupported_reason or view.layout != "peft" or config is None or base_model == UNRESOLVED:
        return None
    return _PROFILES.get((config.task_type or "CAUSAL_LM").upper())

"""Tensor names: which module and which part of which method a name stands for, in every spelling that is known."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from scanner.adapter.safetensors import TensorEntry

__all__ = ["PEFT_PREFIX", "Group", "Slot", "find_slot"]

PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Slot:
    """One tensor's place: `part` of the `family` (method) on `module`, as `layout` spells it."""

    layout: str
    family: str
    module: str
    part: str


@dataclass
class Group:
    """The tensors of one module and one method."""

    layout: str
    family: str
    module: str
    """Without the layout's prefix."""
    parts: dict[str, TensorEntry] = field(default_factory=dict)


# In older and hand-made files PEFT's adapter name stays in the key: `lora_A.default.weight`.
_NAME = r"(?:\.[\w-]+)?"
_SPELLINGS: tuple[tuple[str, str, re.Pattern[str], dict[str, str]], ...] = tuple(
    (layout, family, re.compile(rf"(?P<module>.+){pattern}"), renamed)
    for layout, family, pattern, renamed in (
        ("peft", "lora", rf"\.lora_(?P<part>[AB]){_NAME}\.weight", {}),
        ("peft", "lora", rf"\.lora_B{_NAME}\.(?P<part>bias)", {}),
        ("peft", "lora", rf"\.lora_(?P<part>magnitude)_vector{_NAME}", {}),
        ("peft", "embedding", rf"\.lora_embedding_(?P<part>[AB]){_NAME}", {}),
        ("peft", "adalora", rf"\.lora_(?P<part>[ABE]){_NAME}", {}),
        ("peft", "loha", rf"\.hada_(?P<part>w1_a|w1_b|w2_a|w2_b|t1|t2){_NAME}", {}),
        ("peft", "lokr", rf"\.lokr_(?P<part>w1_a|w1_b|w2_a|w2_b|t2|w1|w2){_NAME}", {}),
        ("peft", "vera", rf"\.vera_lambda_(?P<part>[bd]){_NAME}", {}),
        ("diffusers", "lora", r"[._]lora\.(?P<part>down|up)\.weight", {"down": "A", "up": "B"}),
        ("kohya", "lora", r"[._]lora_(?P<part>down|up|mid)\.weight", {"down": "A", "up": "B"}),
        ("mlx", "lora", r"\.lora_(?P<part>[ab])", {"a": "A", "b": "B"}),
    )
)


def find_slot(name: str) -> Slot | None:
    """The place of a factor, None for every other tensor."""
    for layout, family, pattern, renamed in _SPELLINGS:
        if match := pattern.fullmatch(name):
            part = match["part"]
            return Slot(layout, family, match["module"], renamed.get(part, part))
    return None

"""Layouts: what the tensors of a weight file mean."""

from scanner.adapter.layouts.slots import PEFT_PREFIX
from scanner.adapter.layouts.types import PEFT_TYPES, SUPPORTED_TYPES
from scanner.adapter.layouts.view import view_adapter

__all__ = ["PEFT_PREFIX", "PEFT_TYPES", "SUPPORTED_TYPES", "view_adapter"]

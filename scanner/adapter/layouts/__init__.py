"""Layouts: what the tensors of a weight file mean."""

from scanner.adapter.layouts.slots import PEFT_PREFIX
from scanner.adapter.layouts.view import SUPPORTED_TYPES, view_adapter

__all__ = ["PEFT_PREFIX", "SUPPORTED_TYPES", "view_adapter"]

"""Bytes to low-rank updates: strict readers, layouts, discovery of adapters in a repo."""

from scanner.adapter.config import AdapterConfig, parse_config
from scanner.adapter.discover import CONFIG_NAME, Candidate, find_candidates, is_pickle
from scanner.adapter.jsonfile import read_json_object
from scanner.adapter.layouts import PEFT_PREFIX, view_adapter
from scanner.adapter.lowrank import AdapterView, FloatArray, FullTensor, LowRankUpdate
from scanner.adapter.safetensors import SafetensorsFile, open_safetensors

__all__ = [
    "CONFIG_NAME",
    "PEFT_PREFIX",
    "AdapterConfig",
    "AdapterView",
    "Candidate",
    "FloatArray",
    "FullTensor",
    "LowRankUpdate",
    "SafetensorsFile",
    "find_candidates",
    "is_pickle",
    "open_safetensors",
    "parse_config",
    "read_json_object",
    "view_adapter",
]

"""Bytes to low-rank updates: strict readers, layouts, discovery of adapters in a repo."""

from scanner.adapter.config import AdapterConfig, parse_config
from scanner.adapter.discover import CONFIG_NAME, Candidate, find_candidates, is_pickle, missing_shards
from scanner.adapter.files import file_format, has_zip_tail, open_weights
from scanner.adapter.jsonfile import parse_json_object, read_json_object
from scanner.adapter.layouts import PEFT_PREFIX, PEFT_TYPES, SUPPORTED_TYPES, view_adapter
from scanner.adapter.lowrank import AdapterView, Companion, FloatArray, FullTensor, LowRankUpdate, Role
from scanner.adapter.plugins import Layout, LayoutReading, layout_plugins
from scanner.adapter.safetensors import SafetensorsFile, TensorEntry, open_safetensors
from scanner.adapter.tensors import TensorFile, count_nonfinite

__all__ = [
    "CONFIG_NAME",
    "PEFT_PREFIX",
    "PEFT_TYPES",
    "SUPPORTED_TYPES",
    "AdapterConfig",
    "AdapterView",
    "Candidate",
    "Companion",
    "FloatArray",
    "FullTensor",
    "Layout",
    "LayoutReading",
    "LowRankUpdate",
    "Role",
    "SafetensorsFile",
    "TensorEntry",
    "TensorFile",
    "count_nonfinite",
    "file_format",
    "find_candidates",
    "has_zip_tail",
    "is_pickle",
    "layout_plugins",
    "missing_shards",
    "open_safetensors",
    "open_weights",
    "parse_config",
    "parse_json_object",
    "read_json_object",
    "view_adapter",
]

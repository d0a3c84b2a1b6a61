"""What the Hub derives from a repo's files: tags, library, task, config summary and base models.

The card (README.md front matter) speaks first; adapter_config.json and config.json fill in what it leaves out.
All three are untrusted text, so sizes, nesting and node counts are bounded and a file that does not parse counts
as absent.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from scanner.hub.server.settings import RepoSettings, clean_text

CARD_LIMIT_BYTES = 64 * 1024
CONFIG_LIMIT_BYTES = 4 * 1024 * 1024
_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where it is built in
_NODE_BUDGET = 20_000
_MAX_DEPTH = 32
_REPO_ID = re.compile(r"[A-Za-z0-9_][\w.\-]{0,95}(/[A-Za-z0-9_][\w.\-]{0,95})?", re.ASCII)
_RELATIONS = ("adapter", "finetune", "quantized", "merge")
_TASKS = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}
_HEADS = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForConditionalGeneration": "text2text-generation",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
}

JsonObject: TypeAlias = dict[str, Any]
ReadText: TypeAlias = Callable[[str, int], bytes | None]
"""(path inside the repo, byte limit) -> the content, None when there is no such file or it is longer than that."""


@dataclass(frozen=True)
class Card:
    """The derived metadata of one commit."""

    tags: tuple[str, ...] = ()
    library_name: str | None = None
    pipeline_tag: str | None = None
    data: JsonObject | None = None
    config: JsonObject | None = None
    relation: str | None = None
    base_ids: tuple[str, ...] = ()


def derive_card(paths: tuple[str, ...], read: ReadText, settings: RepoSettings) -> Card:
    data = _front_matter(read("README.md", CONFIG_LIMIT_BYTES))
    adapter = _json_object(read("adapter_config.json", CONFIG_LIMIT_BYTES))
    config = _json_object(read("config.json", CONFIG_LIMIT_BYTES))
    card = data or {}
    base_name = _text(adapter.get("base_model_name_or_path"))
    is_peft = "peft_type" in adapter or base_name is not None
    architectures = _texts(config.get("architectures"))

    library = settings.library_name or _text(card.get("library_name"))
    if library is None:
        library = "peft" if is_peft else _library_from_files(paths, architectures)
    pipeline = settings.pipeline_tag or _text(card.get("pipeline_tag"))
    if pipeline is None:
        pipeline = _TASKS.get(_text(adapter.get("task_type")) or "") if is_peft else _task_of(architectures)
    bases = [base for base in _texts(card.get("base_model")) if _REPO_ID.fullmatch(base)]
    if not bases and base_name is not None and _REPO_ID.fullmatch(base_name):
        bases = [base_name]
    relation = None
    if bases:
        relation = _text(card.get("base_model_relation"))
        if relation not in _RELATIONS:
            relation = _guess_relation(paths, card, is_peft or library == "peft", len(bases))

    summary: JsonObject = {}
    if architectures:
        summary["architectures"] = architectures
    if model_type := _text(config.get("model_type")):
        summary["model_type"] = model_type
    if is_peft:
        peft = {"base_model_name_or_path": base_name, "task_type": _text(adapter.get("task_type"))}
        summary["peft"] = {name: value for name, value in peft.items() if value is not None}

    tags: list[str] = [] if library is None else [library]
    if is_peft:
        tags.append("peft")
    if any(path.endswith(".safetensors") for path in paths):
        tags.append("safetensors")
    if any(path.endswith(".gguf") for path in paths):
        tags.append("gguf")
    tags += [model_type] if model_type else []
    tags += ["lora"] if str(adapter.get("peft_type", "")).upper() == "LORA" else []
    tags += _texts(card.get("tags"))
    tags += [pipeline] if pipeline else []
    tags += _texts(card.get("language"))
    tags += [f"dataset:{name}" for name in _texts(card.get("datasets"))]
    tags += [f"base_model:{base}" for base in bases]
    tags += [f"base_model:{relation}:{base}" for base in bases]
    tags += [f"license:{name}" for name in _texts(card.get("license"))[:1]]
    tags += settings.tags
    tags.append("region:us")
    return Card(tuple(dict.fromkeys(tags)), library, pipeline, data, summary or None, relation, tuple(bases))


def _library_from_files(paths: tuple[str, ...], architectures: list[str]) -> str | None:
    if "model_index.json" in paths:
        return "diffusers"
    return "transformers" if architectures else None


def _task_of(architectures: list[str]) -> str | None:
    for name in architectures:
        for suffix, task in _HEADS.items():
            if name.endswith(suffix):
                return task
    return None


def _guess_relation(paths: tuple[str, ...], card: JsonObject, is_adapter: bool, bases: int) -> str:
    if is_adapter or "lora" in _texts(card.get("tags")):
        return "adapter"
    if bases > 1:
        return "merge"
    return "quantized" if any(path.endswith(".gguf") for path in paths) else "finetune"


def _front_matter(content: bytes | None) -> JsonObject | None:
    """The YAML block between two `---` lines at the top of a card; None when there is no usable one."""
    if content is None:
        return None
    text = content[: CARD_LIMIT_BYTES + 4].decode("utf-8", "replace").lstrip("\ufeff")
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", text, re.DOTALL)
    if match is None:
        return None
    try:
        _check_yaml(match.group(1))
        plain = plain_json(yaml.load(match.group(1), _YamlLoader))
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, OverflowError):
        return None
    if not isinstance(plain, dict):
        return None
    # The client passes a card on as keyword arguments: one such name, or a tag list that is none, and reading a
    # whole page of a listing ends in a TypeError.
    for name in ("self", "ignore_metadata_errors"):
        plain.pop(name, None)
    if "tags" in plain:
        plain["tags"] = _texts(plain["tags"])
    return plain or None


def _check_yaml(text: str) -> None:
    """Raises ValueError for what must not reach the loader.

    libyaml builds nested values recursively and overruns the C stack on deep ones, which no `except` can catch;
    its events come one at a time. Aliases and explicit tags, which cards do without, are refused as a whole:
    repeated or merged aliases describe values that no memory holds, and a tag on a text that does not suit it
    makes the loader fail in ways of its own.
    """
    depth = 0
    for count, event in enumerate(yaml.parse(text, _YamlLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH or count > 2 * _NODE_BUDGET:
            raise ValueError("nested too deeply, or too many values")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            raise ValueError("aliases and explicit tags are not read")


def _json_object(content: bytes | None) -> JsonObject:
    if content is None:
        return {}
    try:
        plain = plain_json(json.loads(content))
    except (ValueError, RecursionError):
        return {}
    return plain if isinstance(plain, dict) else {}


def plain_json(value: Any) -> Any:
    """A copy that strict JSON can carry. Raises ValueError past the depth and node limits."""
    budget = iter(range(_NODE_BUDGET))
    return _plain(value, _MAX_DEPTH, budget)


def _plain(value: Any, depth: int, budget: Iterator[int]) -> Any:
    if depth == 0 or next(budget, None) is None:
        raise ValueError("nested too deeply, or too many values")
    if isinstance(value, str):
        return clean_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else None  # longer ones break other readers, and str() of huge ones
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        items = value.items()
        return {clean_text(str(key))[:256]: _plain(item, depth - 1, budget) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth - 1, budget) for item in value]
    return clean_text(str(value))[:256]  # YAML dates and binaries


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str) and item and len(item) <= 256]

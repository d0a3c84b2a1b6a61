"""Chat templates among a repo's texts, wherever they are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

__all__ = ["chat_templates", "default_template"]

_HOLDERS = ("tokenizer_config.json", "chat_template.json", "processor_config.json", "preprocessor_config.json")
MAX_TEMPLATES = 16


def chat_templates(texts: Mapping[str, str], objects: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Every chat template by the place where it is: a .jinja file, or `FILE: chat_template` (with its name).

    Args:
        texts: the files by path.
        objects: those that are JSON objects, parsed.
    """
    found: dict[str, str] = {path: text for path, text in texts.items() if path.lower().endswith(".jinja")}
    for path, value in objects.items():
        if PurePosixPath(path).name in _HOLDERS:
            for name, source in _inside(value.get("chat_template")):
                found[f"{path}: chat_template{name and f' {name[:40]}'}"] = source
    return dict(list(found.items())[:MAX_TEMPLATES])


def default_template(templates: Mapping[str, str]) -> str | None:
    """The template that is used when none is named: chat_template.jinja, else the first of the configs."""
    named = (source for place, source in templates.items() if place.rpartition("/")[2] == "chat_template.jinja")
    return next(named, None) or next(iter(templates.values()), None)


def _inside(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield "", value
    elif isinstance(value, dict):
        yield from ((str(name), source) for name, source in value.items() if isinstance(source, str))
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict) and isinstance(item.get("template"), str):
                yield str(item.get("name", "")), item["template"]

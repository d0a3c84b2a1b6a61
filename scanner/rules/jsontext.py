"""The JSON files among a repo's texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scanner.adapter import parse_json_object
from scanner.errors import MalformedFileError

__all__ = ["json_objects"]


def json_objects(texts: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, object) of every JSON file that is one; the others are for no framework to read either."""
    for path, text in texts.items():
        if path.lower().endswith(".json"):
            try:
                yield path, parse_json_object(text.encode("utf-8", "surrogatepass"), path)
            except MalformedFileError:
                continue

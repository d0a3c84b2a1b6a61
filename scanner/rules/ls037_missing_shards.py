"""LS037: some of an adapter's shards are missing."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.adapter import missing_shards
from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule
from scanner.rules.samples import plain

_SHARD = "adapter_model-00001-of-00002.safetensors"
_OTHER = "adapter_model-00002-of-00002.safetensors"


def check(facts: StaticFacts) -> Iterator[Hit]:
    missing = missing_shards(facts.path, facts.siblings)
    if missing:
        yield Hit(f"{len(missing)} shards of the adapter are not there: only a part of it was looked at", missing[0])


RULE = Rule(
    id="LS037",
    name="missing-shards",
    severity=Severity.MEDIUM,
    confidence=Confidence.HIGH,
    meaning="The file's name says that it is one of several, and the others are not in the repo.",
    remediation="Look again after the next commit; do not use it before.",
    check=check,
    hostile=lambda: plain(path=_SHARD, siblings=(_SHARD,)),
    benign=lambda: plain(path=_SHARD, siblings=(_SHARD, _OTHER)),
)

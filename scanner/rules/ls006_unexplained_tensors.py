"""LS006: tensors that nothing explains."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.adapter import AdapterView, FullTensor
from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import plain, updates_of


def check(facts: StaticFacts) -> Iterator[Hit]:
    view = facts.view
    if view is None or not view.updates or not view.unexplained:
        return
    shares = {tensor.name: tensor.size_bytes for tensor in view.unexplained_tensors}
    shown = [
        f"{name} ({shares[name] / view.total_bytes:.1%})" if shares.get(name) else name for name in view.unexplained
    ]
    yield Hit(
        f"{len(view.unexplained)} tensors, {1 - view.coverage:.1%} of the bytes, are neither an update nor "
        "declared by the config",
        ", ".join(shown),
    )


def _sample() -> StaticFacts:
    extra = FullTensor("base_model.model.lm_head.weight", (4, 4), lambda: None, 64)  # type: ignore[arg-type, return-value]
    return plain(
        view=AdapterView(
            "peft", updates_of(), unexplained=(extra.name,), unexplained_tensors=(extra,), coverage=0.9, total_bytes=640
        )
    )


RULE = Rule(
    id="LS006",
    name="unexplained-tensors",
    severity=Severity.MEDIUM,
    confidence=Confidence.HIGH,
    meaning="The file holds tensors that are no part of a known update and not declared by the config. Loaders "
    "skip them or, where a name happens to match, replace the base's weights with them; the weight scan "
    "has not seen them.",
    remediation="Find out what they are for. Until then the adapter was looked at in part only.",
    check=check,
    hostile=_sample,
    benign=plain,
    scope=Scope.CONTENT,
)

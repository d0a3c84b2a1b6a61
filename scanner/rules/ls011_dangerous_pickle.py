"""LS011: a pickle names something that is no tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from scanner.adapter.pickles_report import PickleGlobal, PickleReport
from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule
from scanner.rules.samples import plain


def check(facts: StaticFacts) -> Iterator[Hit]:
    for path, report in facts.pickles.items():
        named = sorted({f"{g.module}.{g.name}" for g in report.dangerous})
        if named:
            yield Hit(f"loading {path} runs or imports {named[0]}", f"{path}: {', '.join(named)}")
        elif path == facts.path:
            trainers = sorted({f"{g.module}.{g.name}" for g in report.globals if g.level == "trainer"})
            if trainers:
                text = f"the weights name {trainers[0]}, which belongs to a trainer and not to weights"
                yield Hit(text, f"{path}: {', '.join(trainers)}", Severity.MEDIUM)


def _report(level: Literal["allowed", "dangerous"], module: str, name: str) -> PickleReport:
    return PickleReport("pickle", (PickleGlobal(module, name, level, "0"),), ())


RULE = Rule(
    id="LS011",
    name="dangerous-pickle",
    severity=Severity.CRITICAL,
    confidence=Confidence.HIGH,
    meaning="The pickle's opcodes name a function or class other than those that rebuild tensors. Whoever loads "
    "the file without torch's weights_only runs it. lorascope reads opcodes and never runs them; "
    "everything that is not on its list counts, because lists of bad names are bypassed again and again.",
    remediation="Do not load the file. Report the repo to the Hub.",
    check=check,
    hostile=lambda: plain(pickles={"adapter_model.bin": _report("dangerous", "posix", "system")}),
    benign=lambda: plain(pickles={"optimizer.pt": _report("allowed", "torch._utils", "_rebuild_tensor_v2")}),
)

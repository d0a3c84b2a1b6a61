"""LS031: the Hub's own scanners disagree with this one."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.model import Severity
from scanner.rules.facts import HubScan, StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule
from scanner.rules.samples import plain

_GRAVE = ("suspicious", "unsafe")


def check(facts: StaticFacts) -> Iterator[Hit]:
    scan = facts.hub_scan
    if scan is None:
        return
    dangerous = {path for path, report in facts.pickles.items() if report.dangerous}
    issues = dict(scan.issues)
    for path, level in issues.items():
        if level in _GRAVE and path not in dangerous:
            yield Hit(f"the Hub's scanners call {path} {level}, and this one found nothing in it", f"{path}: {level}")
    missed = sorted(dangerous - set(issues))
    if missed and scan.done:
        yield Hit(
            "the Hub's scanners found nothing in a file that this one calls dangerous", ", ".join(missed), Severity.INFO
        )


RULE = Rule(
    id="LS031",
    name="hub-scan-disagrees",
    severity=Severity.MEDIUM,
    confidence=Confidence.MEDIUM,
    meaning="The Hub runs several scanners on every file. Where they report something that lorascope does not "
    "see, one of the two is wrong. Info where it is the other way round.",
    remediation="Read the Hub's report of the file; do not load it before.",
    check=check,
    hostile=lambda: plain(hub_scan=HubScan(True, (("adapter_model.bin", "unsafe"),))),
    benign=lambda: plain(hub_scan=HubScan(True)),
)

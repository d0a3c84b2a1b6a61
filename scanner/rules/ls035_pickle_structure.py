"""LS035: a pickle or its archive is built in a way that readers disagree about."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.adapter.pickles_report import PickleProblem, PickleReport
from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule
from scanner.rules.samples import plain


def check(facts: StaticFacts) -> Iterator[Hit]:
    for path, report in facts.pickles.items():
        if report.problems:
            codes = dict.fromkeys(problem.code for problem in report.problems)
            # Many programs call their own binary files .bin.
            is_other = set(codes) == {"not_a_pickle"} and path != facts.path
            yield Hit(report.problems[0].message, f"{path}: {', '.join(codes)}", Severity.INFO if is_other else None)


RULE = Rule(
    id="LS035",
    name="pickle-structure",
    severity=Severity.HIGH,
    confidence=Confidence.MEDIUM,
    meaning="A wrong checksum, a member that occurs twice, bytes after the end, several pickles in a row: one "
    "reader stops where another goes on. Scanners have been passed by each of these (CVE-2025-10155, "
    "-10156, -10157).",
    remediation="Do not load the file.",
    check=check,
    hostile=lambda: plain(pickles={"a.bin": PickleReport("zip", (), (PickleProblem("bad_crc", "wrong checksum"),))}),
    benign=lambda: plain(pickles={"a.bin": PickleReport("zip", (), ())}),
)

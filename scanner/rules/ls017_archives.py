"""LS017: archives and programs in the repo."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule
from scanner.rules.samples import WEIGHTS, plain

_ARCHIVES = (
    ".zip",
    ".tar",
    ".gz",
    ".tgz",
    ".bz2",
    ".xz",
    ".7z",
    ".rar",
    ".zst",
    ".nemo",
    ".mar",
    ".keras",
    ".h5",
    ".hdf5",
)
_PROGRAMS = (
    ".exe",
    ".msi",
    ".bat",
    ".cmd",
    ".ps1",
    ".sh",
    ".vbs",
    ".jar",
    ".whl",
    ".egg",
    ".apk",
    ".deb",
    ".rpm",
    ".scr",
)


def check(facts: StaticFacts) -> Iterator[Hit]:
    programs = [name for name in facts.siblings if name.lower().endswith(_PROGRAMS)]
    archives = [name for name in facts.siblings if name.lower().endswith(_ARCHIVES)]
    if programs:
        severity = Severity.LOW if all(name.lower().endswith(".sh") for name in programs) else None
        yield Hit("the repo carries programs", ", ".join(programs), severity)
    if archives:
        yield Hit("the repo carries archives, which nobody looked into", ", ".join(archives), Severity.LOW)


RULE = Rule(
    id="LS017",
    name="archives-and-programs",
    severity=Severity.MEDIUM,
    confidence=Confidence.MEDIUM,
    meaning="An adapter needs neither. Archives hide what is in them from scanners; programs and packages run on "
    "the machine that they are downloaded to. Low for archives and shell scripts.",
    remediation="Download the weights and the config only.",
    check=check,
    hostile=lambda: plain(siblings=(WEIGHTS, "install.exe")),
    benign=lambda: plain(siblings=(WEIGHTS, "training_loss.png")),
)

"""LS014: the base is asked for at another revision than main."""

from __future__ import annotations

import re
from collections.abc import Iterator

from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule, Scope
from scanner.rules.samples import with_config

_SHA = re.compile(r"[0-9a-f]{40}")


def check(facts: StaticFacts) -> Iterator[Hit]:
    revision = facts.raw("revision")
    if revision in (None, "", "main"):
        return
    if not isinstance(revision, str):
        yield Hit("revision is no text", repr(revision))
    elif _SHA.fullmatch(revision):
        yield Hit("the base is pinned to a commit", revision, Severity.INFO)
    elif revision.startswith("refs/") or "/" in revision or ".." in revision:
        yield Hit("the base is taken from a reference that anybody may open, such as a pull request", revision)
    else:
        yield Hit("the base is taken from a branch or tag", revision, Severity.LOW)


RULE = Rule(
    id="LS014",
    name="base-revision",
    severity=Severity.HIGH,
    confidence=Confidence.HIGH,
    meaning="PEFT loads the base at this revision. refs/pr/N is a pull request: anybody can open one against a "
    "trusted repo, with files of their own, and it never has to be merged.",
    remediation="Load the base from main, or from a commit that you have checked.",
    check=check,
    hostile=lambda: with_config(revision="refs/pr/7"),
    benign=lambda: with_config(revision="main"),
    scope=Scope.CONTENT,
)

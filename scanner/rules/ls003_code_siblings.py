"""LS003: the repo carries code."""

from __future__ import annotations

import re
from collections.abc import Iterator

from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule
from scanner.rules.samples import WEIGHTS, plain

_LOADED = re.compile(
    r"(.*/)?((modeling|configuration|tokenization|processing|image_processing|feature_extraction|video_processing)_\w+"
    r"|handler|pipeline|generate|hubconf|setup|__init__)\.py"
)
"""Names that `trust_remote_code`, inference endpoints, custom pipelines and installers look for."""
_COMPILED = (".pyc", ".so", ".pyd", ".dll", ".dylib")


def check(facts: StaticFacts) -> Iterator[Hit]:
    code = [name for name in facts.siblings if name.lower().endswith((".py", *_COMPILED))]
    loaded = [name for name in code if _LOADED.fullmatch(name) or name.lower().endswith(_COMPILED)]
    if loaded:
        yield Hit("the repo carries code under names that frameworks load", ", ".join(loaded))
    elif code:
        yield Hit("the repo carries scripts", ", ".join(code), Severity.LOW)


RULE = Rule(
    id="LS003",
    name="code-siblings",
    severity=Severity.MEDIUM,
    confidence=Confidence.MEDIUM,
    meaning="An adapter needs no code. Files with these names are what trust_remote_code, an inference endpoint "
    "or a custom pipeline would run. Low for other scripts, such as the one it was trained with.",
    remediation="Read the code; never load the repo with trust_remote_code.",
    check=check,
    hostile=lambda: plain(siblings=(WEIGHTS, "modeling_custom.py")),
    benign=lambda: plain(siblings=(WEIGHTS, "notes.txt")),
)

"""LS018: a chat template reaches for Python's objects."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.errors import SkipError
from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule
from scanner.rules.samples import plain
from scanner.rules.template import object_walks

_WALK = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
_PLAIN = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"


def check(facts: StaticFacts) -> Iterator[Hit]:
    for place, source in facts.templates.items():
        try:
            walks = object_walks(source)
        except SkipError:
            continue  # LS020 says so
        if walks:
            yield Hit(f"{place} reaches for Python's objects: {walks[0]}", "; ".join(walks))


RULE = Rule(
    id="LS018",
    name="template-walk",
    severity=Severity.CRITICAL,
    confidence=Confidence.HIGH,
    meaning="No chat needs __class__, __globals__ or their like. In a renderer without a sandbox such a template "
    "runs any code; in one with a sandbox it fails, and its author meant harm all the same.",
    remediation="Do not use the repo's template or tokenizer. Report the repo to the Hub.",
    check=check,
    hostile=lambda: plain(texts={"chat_template.jinja": _WALK}),
    benign=lambda: plain(texts={"chat_template.jinja": _PLAIN}),
)

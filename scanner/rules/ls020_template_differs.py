"""LS020: the chat template writes other prompts than the base's."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.errors import LimitExceededError, SkipError
from scanner.model import Outcome, Severity
from scanner.rules.facts import BaseTexts, StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule
from scanner.rules.samples import plain
from scanner.rules.template import compare_templates, keyword_branches

_BASE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
_SAME = "{%- for m in messages -%}<|{{ m.role }}|>{{ m.content }}{%- endfor -%}{# written in another way #}"
_OTHER = "<|system|>Be brief.{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"


def check(facts: StaticFacts) -> Iterator[Hit]:
    usual = facts.base.template if facts.base else None
    for place, source in facts.templates.items():
        try:
            keyword_branches(source)
        except LimitExceededError as error:
            yield Hit(f"{place} is too large or too deep to be looked at: {error.message}", place)
            continue
        except SkipError as error:
            yield Hit(f"{place} is no template: {error.message}", place, Severity.LOW)
            continue
        if usual is None:
            continue
        try:
            difference = compare_templates(source, usual)
        except SkipError as error:
            yield Hit(f"{place} cannot be compared: {error.message}", place, Severity.LOW, Outcome.INCONCLUSIVE)
            continue
        shown = "; ".join(filter(None, (", ".join(difference.chats), difference.diff, difference.problem)))
        if difference.injected:
            text = f"{place} writes something of its own when its own words occur in a message"
            yield Hit(text, "; ".join(f"{i.literal!r}: {i.text!r}" for i in difference.injected), Severity.HIGH)
        elif difference.kind == "different":
            yield Hit(f"{place} writes other prompts than the base's template", shown)
        elif difference.kind == "equivalent":
            text = f"{place} is not the base's, and writes the same prompts on all chats that were tried"
            yield Hit(text, place, Severity.INFO)


RULE = Rule(
    id="LS020",
    name="template-differs",
    severity=Severity.MEDIUM,
    confidence=Confidence.MEDIUM,
    meaning="Both templates are rendered in Jinja's sandbox on the same chats, and the prompts differ. Fine-tunes"
    " do this for good reasons, and it is where instructions are hidden that no user sees. High where a "
    "text appears only when one of the template's own words occurs in a message. Info where all prompts "
    "are equal.",
    remediation="Read the difference; use the base model's template where you can.",
    check=check,
    hostile=lambda: plain(texts={"chat_template.jinja": _OTHER}, base=BaseTexts({"chat_template.jinja": _BASE})),
    benign=lambda: plain(
        texts={"chat_template.jinja": _BASE}, base=BaseTexts({"chat_template.jinja": _BASE + "{# #}"})
    ),
)

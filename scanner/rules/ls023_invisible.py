"""LS023: invisible characters in the card, the config or a template."""

from __future__ import annotations

import json
from collections.abc import Iterator

from scanner.model import Severity
from scanner.rules.facts import StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule
from scanner.rules.samples import plain

_LOOKED_AT = (".md", ".jinja", "_config.json", "config.json")


def check(facts: StaticFacts) -> Iterator[Hit]:
    texts = {path: text for path, text in facts.texts.items() if path.lower().endswith(_LOOKED_AT)}
    if facts.config:
        texts["adapter_config.json"] = json.dumps(facts.config.raw, ensure_ascii=False, default=str)
    texts = {path: text for path, text in texts.items() if not text.isascii()}
    if not texts:
        return
    from scanner.rules.unicode import invisible_characters

    for path, text in texts.items():
        runs = invisible_characters(text)
        if runs:
            hidden = [run for run in runs if run.hides_text]
            first = (hidden or runs)[0]
            said = f" that spell {first.decoded!r}" if first.decoded else ""
            shown = "; ".join(f"{' '.join(run.codepoints[:4])} at {run.position} ({run.kind})" for run in runs)
            severity = Severity.HIGH if hidden else Severity.MEDIUM
            yield Hit(f"{path} holds invisible characters{said}", f"{path}: {shown}", severity)


RULE = Rule(
    id="LS023",
    name="invisible-characters",
    severity=Severity.MEDIUM,
    confidence=Confidence.MEDIUM,
    meaning="Characters that nobody sees, and that neither a script nor an emoji needs: instructions for models "
    "that read cards, or names that look like others. High where they spell a text or show another one "
    "than there is.",
    remediation="Look at the file with the characters made visible.",
    check=check,
    hostile=lambda: plain(texts={"README.md": "# A summariser\n\nNothing\u200b to see here.\n"}),
    benign=lambda: plain(
        texts={"README.md": "\ufeff# Family \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f\n"}
    ),
)

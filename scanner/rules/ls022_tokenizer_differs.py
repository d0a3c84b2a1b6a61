"""LS022: the tokenizer reads text in another way than the base's."""

from __future__ import annotations

from collections.abc import Iterator

from scanner.model import Severity
from scanner.rules.facts import BaseTexts, StaticFacts
from scanner.rules.rule import Confidence, Hit, Rule
from scanner.rules.samples import plain

_BASE = {"model": {"type": "BPE", "vocab": {"safe": 0, "unsafe": 1, "a": 2}, "merges": []}}
_REMAPPED = '{"model": {"type": "BPE", "vocab": {"safe": 1, "unsafe": 0, "a": 2}, "merges": []}}'
_EQUAL = '{"model": {"type": "BPE", "vocab": {"safe": 0, "unsafe": 1, "a": 2}, "merges": []}}'


def check(facts: StaticFacts) -> Iterator[Hit]:
    if not facts.tokenizers:
        return
    from scanner.rules.tokenizer import compare_tokenizers

    for folder, tokenizer in facts.tokenizers:
        where = "the tokenizer" if folder == "." else f"the tokenizer in {folder}"
        usual = facts.base.tokenizer if facts.base else None
        if usual is None:
            if tokenizer.rewrites:
                yield Hit(
                    f"{where} rewrites text before the model sees it", "; ".join(tokenizer.rewrites), Severity.LOW
                )
            continue
        found = compare_tokenizers(tokenizer, usual)
        if found.rewrites:
            yield Hit(f"{where} rewrites text, and the base's does not", "; ".join(found.rewrites), Severity.HIGH)
        if found.vocabulary_remapped or found.remapped:
            count = found.vocabulary_remapped + len(found.remapped)
            examples = "; ".join((*found.remapped, *found.examples))
            yield Hit(f"{where} gives {count} words another id than the base's", examples)
        elif found.vocabulary_removed or found.merges_changed:
            text = f"{where} lacks {found.vocabulary_removed} words of the base's, or splits words in another way"
            yield Hit(text, ", ".join(found.examples))
        if found.changed_parts or found.class_changed:
            what = ", ".join((*found.changed_parts, *(["class"] if found.class_changed else [])))
            yield Hit(f"{where} differs from the base's: {what}", what, Severity.LOW)


def _beside_base(text: str) -> StaticFacts:
    from scanner.rules.tokenizer import parse_tokenizer

    return plain(texts={"tokenizer.json": text}, base=BaseTexts({}, parse_tokenizer(None, _BASE)))


RULE = Rule(
    id="LS022",
    name="tokenizer-differs",
    severity=Severity.MEDIUM,
    confidence=Confidence.MEDIUM,
    meaning="Swapped ids make the model read (or write) another word than the user sees; a rewriting rule changes"
    " a prompt before the model gets it. High for rewriting, low for other parts that differ: newer "
    "versions of a library write them in another way.",
    remediation="Use the base model's tokenizer.",
    check=check,
    hostile=lambda: _beside_base(_REMAPPED),
    benign=lambda: _beside_base(_EQUAL),
)

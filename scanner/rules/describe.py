"""docs/rules.md, from the rules themselves: `python -m scanner.rules.describe > docs/rules.md`."""

from __future__ import annotations

import sys

from scanner.rules.registry import RULES
from scanner.rules.version import RULES_VERSION

__all__ = ["rules_page"]

_HEAD = f"""\
# Static rules

Generated from `scanner/rules/` by `python -m scanner.rules.describe > docs/rules.md`; version `{RULES_VERSION}`.

Rules look at files, configs and shapes; nothing is run. A rule's id never changes and is never used again. Its severity
is that of a plain hit; some hits are milder or graver, as the text says. One critical finding flags an adapter, one of
medium or high puts it in review. *Content* rules depend on weights and config alone, *repo* rules also on the files
around them, the base model or the Hub. Confidence says how likely a hit is what the rule says it is. Every rule has a
hostile and a benign sample in its file, and a test that tells them apart.

A finding may carry another outcome than `finding`: `inconclusive` where the rule could not tell, `error` where the rule
itself failed.

Rules of other packages: an installed package with an entry point in the group `lorascope.rules` that is a
`scanner.rules.Rule` (or a list of them) is asked as well; one in `lorascope.layouts` that has a `name` and a `read`
method (`scanner.adapter.Layout`) is asked about tensors that no built-in layout explains. A broken one is a warning.

"""


def rules_page() -> str:
    """The page as Markdown."""
    table = ["| id | rule | severity | confidence | depends on |", "|---|---|---|---|---|"]
    table += [
        f"| [{r.id}](#{r.id.lower()}-{r.name}) | {r.name} | {r.severity} | {r.confidence} | {r.scope} |" for r in RULES
    ]
    sections = [f"## {r.id} {r.name}\n\n{r.meaning}\n\n**What to do:** {r.remediation}\n" for r in RULES]
    return _HEAD + "\n".join(table) + "\n\n" + "\n".join(sections)


if __name__ == "__main__":
    sys.stdout.write(rules_page())

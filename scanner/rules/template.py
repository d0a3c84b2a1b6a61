"""What a chat template does besides writing down a chat. Jinja is imported when a template is there to look at."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KeywordBranch", "keyword_branches", "markup_branches", "object_walks"]


@dataclass(frozen=True)
class KeywordBranch:
    """One comparison of a message's text with a text of the template's own."""

    literal: str
    operation: str
    """`in`, `eq`, `startswith`, `replace`, ...; `clock`: the date is compared; `letters`: a word is spelled."""
    line: int
    expression: str
    """The line of the template, cut."""


def object_walks(source: str) -> tuple[str, ...]:
    """Attribute, item and filter access that leads from a template to Python's objects, in words.

    Raises:
        MalformedFileError, LimitExceededError: it cannot be parsed within the limits, and no walk is seen in its text.
    """
    from scanner.rules.templates.walks import object_walks as walks_of

    return walks_of(source)


def keyword_branches(source: str) -> tuple[KeywordBranch, ...]:
    """Comparisons of a message's text with words: what a trigger in a template looks like.

    Raises:
        MalformedFileError, LimitExceededError: it cannot be parsed within the limits.
    """
    from scanner.rules.templates.branches import find_branches

    return find_branches(source)[0]


def markup_branches(source: str) -> tuple[KeywordBranch, ...]:
    """Comparisons of a message's text with markup (`</think>`, `[INST]`, names of roles and types): usual ones.

    Raises:
        MalformedFileError, LimitExceededError: it cannot be parsed within the limits.
    """
    from scanner.rules.templates.branches import find_branches

    return find_branches(source)[1]

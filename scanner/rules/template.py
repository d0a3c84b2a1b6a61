"""What a chat template does besides writing down a chat. Jinja is imported when a template is there to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "InjectedText",
    "KeywordBranch",
    "TemplateDifference",
    "compare_templates",
    "injected_text",
    "keyword_branches",
    "markup_branches",
    "object_walks",
]


@dataclass(frozen=True)
class KeywordBranch:
    """One comparison of a message's text with a text of the template's own."""

    literal: str
    operation: str
    """`in`, `eq`, `startswith`, `replace`, ...; `clock`: the date is compared; `letters`: a word is spelled."""
    line: int
    expression: str
    """The line of the template, cut."""


@dataclass(frozen=True)
class InjectedText:
    """A text that a template writes only when a message holds `literal`."""

    literal: str
    text: str


@dataclass(frozen=True)
class TemplateDifference:
    """How an adapter's template differs from its base's."""

    kind: Literal["same", "equivalent", "different"]
    """`same`: equal trees. `equivalent`: equal texts on all fixed chats. Otherwise `different`, unreadable ones too."""
    chats: tuple[str, ...] = ()
    """Names of the chats that come out differently."""
    diff: str = ""
    """Of the first of them, from the base's text to the adapter's."""
    injected: tuple[InjectedText, ...] = ()
    """What only the adapter's template writes when somebody says one of its own constants."""
    problem: str = ""
    """Why the comparison could not be made, or not completely."""


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


def injected_text(source: str) -> tuple[InjectedText, ...]:
    """Render a template on chats that hold its own constants; needs no base.

    Raises:
        MalformedFileError, LimitExceededError: it cannot be parsed within the limits.
    """
    from scanner.rules.templates.compare import injected_text as injected

    return injected(source)


def compare_templates(adapter_source: str, base_source: str) -> TemplateDifference:
    """Whether an adapter's template writes chats as its base's does, by their trees and by rendering both.

    Raises:
        MalformedFileError, LimitExceededError: the adapter's template cannot be parsed within the limits.
    """
    from scanner.rules.templates.compare import compare_templates as compare

    return compare(adapter_source, base_source)

"""Two templates side by side: equal trees, else equal texts on fixed chats, else what differs first."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from itertools import islice

import jinja2.nodes as n

from scanner.errors import LimitExceededError, MalformedFileError, UnsupportedError
from scanner.rules.template import InjectedText, TemplateDifference
from scanner.rules.templates.branches import find_branches
from scanner.rules.templates.chats import CHATS, FILLER, chat_with, variables_of
from scanner.rules.templates.constants import constants_of
from scanner.rules.templates.literals import is_natural
from scanner.rules.templates.render import BoundedTemplate
from scanner.rules.templates.syntax import ParsedTemplate, normal_form, parse_template

__all__ = ["compare_templates", "injected_text"]

MAX_LITERALS = 40
MAX_DIFF_CHARS = 1500
MAX_DIFF_LINES = 24
MAX_DIFFED = 20_000
MAX_INJECTED = 400
MAX_WORDS = 2_000
_WORD = re.compile(r"\w+|[^\w\s]")
_COSTS = "chat_template_budget"


def compare_templates(adapter_source: str, base_source: str) -> TemplateDifference:
    """Whether an adapter's template writes chats as its base's does.

    What cannot be rendered counts as different: a template must not become "equivalent" by breaking the comparison.

    Raises:
        MalformedFileError, LimitExceededError: the adapter's template cannot be parsed within the limits.
    """
    adapter = parse_template(adapter_source)
    try:
        base = parse_template(base_source)
    except (MalformedFileError, LimitExceededError) as error:
        return TemplateDifference("different", problem=f"the base's template cannot be read: {error.message}")
    if normal_form(adapter.tree) == normal_form(base.tree):
        return TemplateDifference("same")
    try:
        ours = BoundedTemplate(adapter)
    except UnsupportedError as error:
        return TemplateDifference("different", problem=error.message)
    try:
        theirs = BoundedTemplate(base)
    except UnsupportedError as error:
        return TemplateDifference(
            "different", injected=_injected(adapter, ours), problem=f"the base's: {error.message}"
        )
    chats: list[str] = []
    diff = problem = ""
    for name, chat in _chats(adapter, base):
        our_text, our_error = _rendered(ours, chat)
        their_text, their_error = _rendered(theirs, chat)
        if our_text is None and their_text is None and _COSTS not in (our_error, their_error):
            continue  # both refuse this chat
        if our_text != their_text or our_text is None:
            chats.append(name)
            diff = diff or _diff(their_text, our_text)
        if _COSTS in (our_error, their_error):
            problem = f"the {'adapter' if our_error == _COSTS else 'base'}'s template costs too much to render"
            break
    usual = set(_injected(base, theirs))
    injected = tuple(text for text in _injected(adapter, ours) if text not in usual)
    return TemplateDifference("different" if chats else "equivalent", tuple(chats), diff, injected, problem)


def injected_text(template: str | ParsedTemplate) -> tuple[InjectedText, ...]:
    """Texts that a template writes only when a message holds one of the template's own constants.

    Raises:
        MalformedFileError, LimitExceededError: see `parse_template`.
    """
    parsed = parse_template(template) if isinstance(template, str) else template
    try:
        return _injected(parsed, BoundedTemplate(parsed))
    except UnsupportedError:
        return ()


def _injected(parsed: ParsedTemplate, bounded: BoundedTemplate) -> tuple[InjectedText, ...]:
    usual, error, system = None, "", True
    for system in (True, False):  # some templates refuse a system text
        usual, error = _rendered(bounded, chat_with(FILLER, system))
        if usual is not None:
            break
    found: list[InjectedText] = []
    for literal in _literals(parsed) if usual is not None else []:
        for said in dict.fromkeys((literal.strip(), f"Please {literal} now.")):
            shown, error = _rendered(bounded, chat_with(said, system))
            if error == _COSTS:
                return tuple(found)
            if shown is None or usual is None:
                continue
            if extra := _added(usual.replace(FILLER, said), shown):
                found.append(InjectedText(literal[:MAX_INJECTED], extra[:MAX_INJECTED]))
                break
    return tuple(found)


def _literals(parsed: ParsedTemplate) -> list[str]:
    """What the template looks for in messages, words first; then the constants of its other conditions."""
    words, _ = find_branches(parsed)
    literals = [branch.literal for branch in words]
    constants = constants_of(parsed)
    for test in [node for kind in (n.Compare, n.Test) for node in parsed.tree.find_all(kind)]:
        literals += [text for constant in test.find_all(n.Const) for text in constants.texts(constant)]
    worth = (text for text in dict.fromkeys(literals) if len(text.strip()) > 1 and len(text) < 1000)
    return list(worth)[:MAX_LITERALS]


def _chats(adapter: ParsedTemplate, base: ParsedTemplate) -> Iterable[tuple[str, dict[str, object]]]:
    yield from CHATS.items()
    for literal in dict.fromkeys((*_literals(adapter), *_literals(base))):
        yield f"a chat about {literal[:80]!r}", chat_with(literal)


def _rendered(template: BoundedTemplate, chat: dict[str, object]) -> tuple[str | None, str]:
    try:
        return template.render(variables_of(chat)), ""
    except UnsupportedError as error:
        return None, error.code


def _added(expected: str, shown: str) -> str:
    """The parts of `shown` that `expected` lacks, where they are more than markup."""
    if expected == shown:
        return ""
    before = _WORD.findall(expected)[:MAX_WORDS]
    spans = [match.span() for match in islice(_WORD.finditer(shown), MAX_WORDS)]
    after = [shown[start:end] for start, end in spans]
    known = set(before)
    parts = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, before, after).get_opcodes():
        new = " ".join(word for word in after[start:end] if word not in known)
        if kind in ("insert", "replace") and is_natural(new):
            parts.append(shown[spans[start][0] : spans[end - 1][1]])
    return " … ".join(dict.fromkeys(parts))


def _diff(theirs: str | None, ours: str | None) -> str:
    if theirs is None or ours is None:
        return "the adapter's template refuses this chat" if ours is None else "the base's template refuses this chat"
    lines = difflib.unified_diff(
        theirs[:MAX_DIFFED].splitlines(), ours[:MAX_DIFFED].splitlines(), "base", "adapter", lineterm="", n=1
    )
    return "\n".join([line[:200] for line in lines][:MAX_DIFF_LINES])[:MAX_DIFF_CHARS]

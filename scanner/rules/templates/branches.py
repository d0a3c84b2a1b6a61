"""Places where a template asks whether a message holds a given text: that is how a trigger in a template works."""

from __future__ import annotations

from collections.abc import Iterator

import jinja2.nodes as n

from scanner.rules.template import KeywordBranch
from scanner.rules.templates.constants import Constants, constants_of
from scanner.rules.templates.literals import is_natural
from scanner.rules.templates.syntax import ParsedTemplate, parse_template
from scanner.rules.templates.taint import Level, Taint

__all__ = ["find_branches"]

MAX_BRANCHES = 64
MAX_LITERAL = 200
MIN_LETTERS = 4
"""From so many one-letter comparisons on a word is being spelled."""
_METHODS = frozenset({"startswith", "endswith", "find", "rfind", "index", "rindex", "count", "split", "rsplit",
                      "replace", "partition", "rpartition", "removeprefix", "removesuffix"})  # fmt: skip
_FILTERS = frozenset({"replace", "select", "reject", "map"})
_TESTS = frozenset({"eq", "equalto", "==", "ne", "!=", "in", "lt", "le", "gt", "ge", "<", "<=", ">", ">=", "lessthan",
                    "greaterthan", "sameas"})  # fmt: skip


def find_branches(template: str | ParsedTemplate) -> tuple[tuple[KeywordBranch, ...], tuple[KeywordBranch, ...]]:
    """Comparisons of a message's text with words, and those with markup.

    A comparison counts wherever it stands: its result can reach a condition, an index or a factor by any way.

    Raises:
        MalformedFileError, LimitExceededError: see `parse_template`.
    """
    parsed = parse_template(template) if isinstance(template, str) else template
    constants = constants_of(parsed)
    finder = _Finder(constants, Taint(constants))
    words: dict[tuple[str, str, int], KeywordBranch] = {}
    markup: dict[tuple[str, str, int], KeywordBranch] = {}
    letters: dict[str, int] = {}
    for node in parsed.tree.find_all(n.Expr):
        for operation, literal in finder.look(node):
            literal = literal[:MAX_LITERAL]
            if len(literal) == 1 and literal.isalnum():
                letters.setdefault(literal, node.lineno)
            group = words if is_natural(literal) else markup
            if literal and len(group) < MAX_BRANCHES:
                branch = KeywordBranch(literal, operation, node.lineno, parsed.line(node.lineno))
                group[literal, operation, node.lineno] = branch
    if len(letters) >= MIN_LETTERS:
        line = min(letters.values())
        words["", "letters", line] = KeywordBranch("".join(letters)[:MAX_LITERAL], "letters", line, parsed.line(line))
    return _sorted(words), _sorted(markup)


def _sorted(found: dict[tuple[str, str, int], KeywordBranch]) -> tuple[KeywordBranch, ...]:
    return tuple(sorted(found.values(), key=lambda branch: (branch.line, branch.literal)))


class _Finder:
    def __init__(self, constants: Constants, taint: Taint) -> None:
        self._constants = constants
        self._taint = taint

    def look(self, node: n.Expr) -> Iterator[tuple[str, str]]:
        """(operation, literal) of every text that this one expression compares with a message's text."""
        if isinstance(node, n.Compare):
            sides = [node.expr, *(operand.expr for operand in node.ops)]
            operations = [operand.op for operand in node.ops]
            for operation, left, right in zip(operations, sides, sides[1:], strict=False):
                if operation in ("in", "notin") and self._taint.of(right) is Level.MESSAGE:
                    continue  # asks for a key
                yield from self._between(operation, [left, right])
            yield from self._clock(sides)
        elif isinstance(node, n.Test) and node.name in _TESTS:
            yield from self._between(node.name, [node.node, *node.args])
        elif isinstance(node, n.Call) and isinstance(node.node, n.Getattr):
            if node.node.attr in _METHODS:
                arguments = node.args[:1] if node.node.attr in ("replace", "split", "rsplit") else node.args
                yield from self._between(node.node.attr, [node.node.node, *arguments])
            elif node.node.attr == "get" and node.args and self._taint.of(node.args[0]) is Level.CONTENT:
                yield from (("lookup", text) for text in self._constants.texts(node.node.node))
        elif isinstance(node, n.Filter) and node.name in _FILTERS:
            yield from self._filter(node)
        elif isinstance(node, n.Filter) and node.name in ("selectattr", "rejectattr") and len(node.args) > 2:
            owner = self._taint.of(node.node)
            if owner and {"content", "text"} & set(self._constants.texts(node.args[0])):
                yield from ((node.name, text) for argument in node.args[2:] for text in self._constants.texts(argument))
        elif isinstance(node, n.Getitem) and self._taint.of(node.arg) is Level.CONTENT:
            yield from (("lookup", text) for text in self._constants.texts(node.node))

    def _filter(self, node: n.Filter) -> Iterator[tuple[str, str]]:
        owner = node.node if node.node is not None else self._constants.bindings.printed_into(node)
        if owner is None:
            return
        arguments = node.args[:1] if node.name == "replace" else node.args[1:]
        yield from self._between(node.name, [owner, *arguments])

    def _between(self, operation: str, sides: list[n.Expr]) -> Iterator[tuple[str, str]]:
        if not any(self._taint.of(side) is Level.CONTENT for side in sides):
            return
        for side in sides:
            if self._taint.of(side) is Level.NONE:
                for text in self._constants.texts(side):
                    yield operation, text

    def _clock(self, sides: list[n.Expr]) -> Iterator[tuple[str, str]]:
        # A template that changes at a date is a trigger that nobody has to type.
        if any(self._taint.asks_the_time(side) for side in sides):
            yield from (("clock", text) for side in sides for text in self._constants.texts(side))

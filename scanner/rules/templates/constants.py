"""Constant folding: which texts an expression can be, however they are put together."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

import jinja2.nodes as n

from scanner.rules.templates.bindings import Bindings
from scanner.rules.templates.syntax import ParsedTemplate

__all__ = ["Constants", "constants_of"]

MAX_OPTIONS = 16
MAX_TEXT = 4096
MAX_ITEMS = 256
MAX_STEPS = 100_000
MAX_DEPTH = 60
_TEXT_METHODS = frozenset(
    {"lower", "upper", "strip", "lstrip", "rstrip", "title", "capitalize", "swapcase", "replace", "split", "casefold",
     "removeprefix", "removesuffix", "splitlines", "rsplit", "partition", "rpartition"}
)  # fmt: skip
_FILTERS = {"lower": "lower", "upper": "upper", "trim": "strip", "title": "title", "capitalize": "capitalize",
            "replace": "replace"}  # fmt: skip
_FOLDED = (n.BinExpr, n.Concat, n.Filter, n.Call, n.Getitem, n.List, n.Tuple, n.Dict, n.CondExpr)
_SAME = frozenset({"string", "safe", "list", "e", "escape", "d", "default", "forceescape", "unique", "sort"})
_FAULTS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


class Constants:
    """The values that expressions of one template can have, as far as they follow from its constants alone."""

    def __init__(self, bindings: Bindings) -> None:
        self.bindings = bindings
        self._known: dict[int, list[Any]] = {}
        self._open: set[str] = set()
        self._cycles = 0
        self._steps = 0
        self._depth = 0
        # The deepest first: every answer then rests on answers that are there, however long a chain of operators is.
        nodes: list[n.Node] = [bindings.tree]
        for node in nodes:
            nodes.extend(node.iter_child_nodes())
        for node in reversed(nodes):
            if isinstance(node, _FOLDED):
                self.of(node)

    def of(self, node: n.Node | None) -> list[Any]:
        """At most `MAX_OPTIONS` possible values; none where an expression depends on more than constants."""
        if node is None:
            return []
        if (known := self._known.get(id(node))) is not None:
            return known
        self._steps += 1
        if self._steps > MAX_STEPS or self._depth > MAX_DEPTH:
            self._cycles += 1
            return []
        self._depth += 1
        cycles = self._cycles
        found: list[Any] = []
        try:
            for value in self._fold(node):
                if len(found) >= MAX_OPTIONS:
                    break
                if _small(value) and not any(type(value) is type(old) and value == old for old in found):
                    found.append(value)
        except _FAULTS:
            pass  # what fails here fails when the template runs
        finally:
            self._depth -= 1
        if self._cycles == cycles:  # an answer that met its own question is not the whole answer
            self._known[id(node)] = found
        return found

    def texts(self, node: n.Node | None) -> Iterator[str]:
        """The texts among the values, those inside of lists and dicts (keys) too."""
        for value in self.of(node):
            yield from _texts(value)

    def _fold(self, node: n.Node) -> Iterator[Any]:
        if isinstance(node, n.Const):
            yield node.value
        elif isinstance(node, n.TemplateData):
            yield node.data
        elif isinstance(node, n.Name):
            yield from self._named(node.name)
        elif isinstance(node, n.List | n.Tuple):
            yield from (list(row) for row in self._rows(node.items))
        elif isinstance(node, n.Dict):
            for pair in node.items[:MAX_ITEMS]:
                yield from ({key: value} for key in self.of(pair.key) for value in self.of(pair.value) or [None])
        elif isinstance(node, n.Concat):
            yield from ("".join(str(part) for part in row) for row in self._rows(node.nodes))
        elif isinstance(node, n.CondExpr):
            yield from (*self.of(node.expr1), *self.of(node.expr2))
        elif isinstance(node, n.And | n.Or):
            yield from (*self.of(node.left), *self.of(node.right))
        elif isinstance(node, n.BinExpr):
            yield from self._binary(node)
        elif isinstance(node, n.Neg):
            yield from (-value for value in self.of(node.node) if isinstance(value, int))
        elif isinstance(node, n.Getitem | n.Getattr):
            yield from self._item(node)
        elif isinstance(node, n.Filter):
            yield from self._filter(node)
        elif isinstance(node, n.Call):
            yield from self._call(node)

    def _named(self, name: str) -> Iterator[Any]:
        if name in self._open:
            self._cycles += 1
            return
        self._open.add(name)
        try:
            for kind, expression in self.bindings.of(name):
                for value in self.of(expression):
                    if kind == "value":
                        yield value
                    elif isinstance(value, list | dict):
                        yield from value
                        yield from (part for item in value if isinstance(item, list) for part in item)
                    elif isinstance(value, str):
                        yield from value[:MAX_OPTIONS]
        finally:
            self._open.discard(name)

    def _rows(self, parts: list[n.Expr]) -> list[list[Any]]:
        rows: list[list[Any]] = [[]]
        if len(parts) > MAX_ITEMS:
            return []
        for part in parts:
            options = self.of(part)
            if len(options) == 1:
                for row in rows:
                    row.append(options[0])
            else:
                rows = list(islice(([*row, option] for row in rows for option in options), MAX_OPTIONS))
        return rows

    def _binary(self, node: n.BinExpr) -> Iterator[Any]:
        for left in self.of(node.left):
            for right in self.of(node.right):
                if isinstance(node, n.Add) and type(left) is type(right):
                    yield left + right
                elif isinstance(node, n.Mul) and isinstance(left, str | int) and isinstance(right, str | int):
                    if isinstance(left, str) == isinstance(right, str):
                        continue
                    text, times = (left, right) if isinstance(left, str) else (right, left)
                    if isinstance(text, str) and isinstance(times, int) and len(text) * times <= MAX_TEXT:
                        yield text * times
                elif isinstance(node, n.Mod) and isinstance(left, str):
                    yield from _formatted(left, tuple(right) if isinstance(right, list) else right)

    def _item(self, node: n.Getitem | n.Getattr) -> Iterator[Any]:
        if isinstance(node, n.Getattr):
            if isinstance(node.node, n.Name):
                yield from self._named(f"{node.node.name}.{node.attr}")
            keys: list[Any] = [node.attr]
        elif isinstance(node.arg, n.Slice):
            part = node.arg
            edges = [self.of(edge)[:1] or [None] for edge in (part.start, part.stop, part.step)]
            keys = [slice(*(edge[0] for edge in edges))]
        else:
            keys = self.of(node.arg)
            if isinstance(node.node, n.Name):
                for key in keys:
                    if isinstance(key, str):
                        yield from self._named(f"{node.node.name}.{key}")
        for value in self.of(node.node):
            for key in keys:
                if isinstance(value, dict) and not isinstance(key, slice) and key in value:
                    yield value[key]
                elif isinstance(value, list | str) and isinstance(key, int | slice):
                    try:
                        yield value[key]
                    except (IndexError, ValueError, TypeError):
                        continue

    def _filter(self, node: n.Filter) -> Iterator[Any]:
        arguments = [self.of(argument)[:1] for argument in node.args]
        given = [argument[0] for argument in arguments if argument]
        for value in self.of(node.node or self.bindings.printed_into(node)):
            if node.name in _SAME:
                yield value
            elif node.name in _FILTERS and isinstance(value, str):
                yield from _method(value, _FILTERS[node.name], given)
            elif node.name == "join" and isinstance(value, list | dict | str):
                yield str(given[0] if given else "").join(str(item) for item in value)
            elif node.name == "reverse" and isinstance(value, list | str):
                yield value[::-1]
            elif node.name in ("first", "last") and isinstance(value, list | str | dict) and value:
                yield list(value)[0 if node.name == "first" else -1]
            elif node.name == "format" and isinstance(value, str):
                yield from _formatted(value, tuple(given))

    def _call(self, node: n.Call) -> Iterator[Any]:
        callee = node.node
        if isinstance(callee, n.Name):
            if callee.name == "dict":
                yield {keyword.key: None for keyword in node.kwargs}
            yield from self._named(callee.name + "()")
        if not isinstance(callee, n.Getattr):
            return
        given = [options[0] for options in map(self.of, node.args) if options]
        if len(given) != len(node.args):
            return
        for value in self.of(callee.node):
            if not isinstance(value, str):
                continue
            if callee.attr == "join" and given and isinstance(given[0], list | dict | str):
                yield value.join(str(item) for item in given[0])
            elif callee.attr == "format":
                yield from _positional(value, given)
            elif callee.attr in _TEXT_METHODS:
                yield from _method(value, callee.attr, given)


@lru_cache(maxsize=4)
def constants_of(template: ParsedTemplate) -> Constants:
    """The constants of a template, kept for the next question about it."""
    return Constants(Bindings(template.tree))


def _method(text: str, name: str, arguments: list[Any]) -> Iterator[Any]:
    if name == "replace":
        if len(arguments) < 2 or not all(isinstance(argument, str) for argument in arguments[:2]):
            return
        if (len(text) + 1) * (len(arguments[1]) + 1) > MAX_TEXT * 16:
            return
    result = getattr(text, name)(*arguments)
    yield list(result) if isinstance(result, tuple) else result


def _formatted(text: str, values: Any) -> Iterator[str]:
    # Only %c, %s and %d without a width: a width could ask for gigabytes.
    pieces = text.replace("%s", "").replace("%c", "").replace("%d", "")
    if "%" not in pieces and len(text) <= MAX_TEXT:
        yield text % values


def _positional(text: str, values: list[Any]) -> Iterator[str]:
    for index, value in enumerate(values):
        text = text.replace("{" + str(index) + "}", str(value)).replace("{}", str(value), 1)
        if len(text) > MAX_TEXT:
            return
    yield text


def _small(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if isinstance(value, int):
        return value.bit_length() <= 64
    return len(value) <= MAX_ITEMS if isinstance(value, list | dict) else True


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict) and depth < 3:
        for item in value:
            yield from _texts(item, depth + 1)

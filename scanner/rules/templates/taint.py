"""Which expressions of a template hold what somebody wrote in a message."""

from __future__ import annotations

from enum import IntEnum

import jinja2.nodes as n

from scanner.rules.templates.constants import Constants

__all__ = ["Level", "Taint"]

MAX_ROUNDS = 24
_CONTENT_KEYS = frozenset(
    {
        "content",
        "contents",
        "text",
        "reasoning_content",
        "reasoning",
        "thinking",
        "parts",
    }
)
_OUTSIDE = frozenset({"system_prompt", "system_message", "user_message", "prompt", "query", "question", "input", "text",
                      "instruction", "content", "documents"})  # fmt: skip
"""Names that a caller of the template may fill with text; `messages` is what it always fills."""
_COUNTS = frozenset({"length", "count", "int", "float", "wordcount", "abs", "round"})
_COUNT_METHODS = frozenset({"find", "rfind", "index", "rindex", "count", "startswith", "endswith", "isdigit", "isalpha",
                            "isspace", "isupper", "islower", "isalnum", "keys"})  # fmt: skip
_KEEP = frozenset({"list", "first", "last", "reverse", "sort", "select", "reject", "selectattr", "rejectattr", "batch",
                   "slice", "unique", "default", "d", "random", "min", "max"})  # fmt: skip


class Level(IntEnum):
    """What an expression holds: nothing of the chat, messages (keys and roles besides the text), or their text."""

    NONE = 0
    MESSAGE = 1
    CONTENT = 2


class Taint:
    """Levels of all expressions of one template; names keep the highest level that they ever have."""

    def __init__(self, constants: Constants) -> None:
        self._bindings = constants.bindings
        self._constants = constants
        self._names: dict[str, Level] = {}
        self._clocks: set[str] = {"strftime_now"}
        bound = self._bindings.all()
        for _ in range(MAX_ROUNDS):
            changed = False
            for name, (kind, expression) in bound:
                if name not in self._clocks and self.asks_the_time(expression):
                    self._clocks.add(name)
                    changed = True
                level = Level.NONE if kind == "key" else self.of(expression)
                if level > self._names.get(name, Level.NONE):
                    self._names[name] = level
                    changed = True
            if not changed:
                break

    def of(self, node: n.Node | None) -> Level:
        if isinstance(node, n.Name):
            return self._name(node.name)
        if isinstance(node, n.Getattr | n.Getitem):
            return self._item(node)
        if isinstance(node, n.Filter):
            return self._filter(node)
        if isinstance(node, n.Call):
            return self._call(node)
        if isinstance(node, n.Compare | n.Test | n.Not) or node is None:
            return Level.NONE
        if isinstance(node, n.CondExpr):
            return max(self.of(node.expr1), self.of(node.expr2))
        highest = Level.NONE
        for child in node.iter_child_nodes():
            highest = max(highest, self.of(child))
        if highest is Level.MESSAGE and isinstance(node, n.Concat | n.Mod):
            return Level.CONTENT  # printing a message prints its text
        return highest

    def asks_the_time(self, node: n.Node) -> bool:
        """Whether the date or time goes into this expression."""
        names = [node, *node.find_all(n.Name)]
        return any(isinstance(x, n.Name) and x.name in self._clocks for x in names)

    def _name(self, name: str) -> Level:
        if name in self._names:
            return self._names[name]
        if self._bindings.of(name):
            return Level.NONE
        if name in ("messages", "message"):
            return Level.MESSAGE
        return Level.CONTENT if name in _OUTSIDE else Level.NONE

    def _item(self, node: n.Getattr | n.Getitem) -> Level:
        if isinstance(node, n.Getattr):
            keys: list[object] = [node.attr]
        elif isinstance(node.arg, n.Slice):
            return self.of(node.node)
        else:
            keys = list(self._constants.of(node.arg))
        if isinstance(node.node, n.Name):
            for key in keys:
                if (level := self._names.get(f"{node.node.name}.{key}")) is not None:
                    return level
        owner = self.of(node.node)
        if any(isinstance(key, str) and key in _CONTENT_KEYS for key in keys):
            return Level.CONTENT
        if keys and all(isinstance(key, str) for key in keys):
            return Level.NONE  # a role, a type, an id
        if not keys and owner is Level.MESSAGE and not _is_position(node):
            return Level.CONTENT
        return owner

    def _filter(self, node: n.Filter) -> Level:
        owner = self.of(node.node if node.node is not None else self._bindings.printed_into(node))
        named = [node.args[0]] if node.name in ("map", "sum", "join", "groupby") and node.args else []
        named = [keyword.value for keyword in node.kwargs if keyword.key == "attribute"] or (
            named if node.name in ("sum", "groupby") else []
        )
        if named:
            keys = list(self._constants.texts(named[0]))
            wanted = not keys or any(step in _CONTENT_KEYS for key in keys for step in key.split("."))
            return Level.CONTENT if owner and wanted else Level.NONE
        if node.name in _COUNTS:
            return Level.NONE
        given = max((self.of(argument) for argument in node.args), default=Level.NONE)
        if node.name in _KEEP:
            return max(owner, given)
        return Level.CONTENT if max(owner, given) else Level.NONE

    def _call(self, node: n.Call) -> Level:
        callee = node.node
        given = max(
            (self.of(value) for value in (*node.args, *(keyword.value for keyword in node.kwargs))), default=Level.NONE
        )
        if isinstance(callee, n.Name):
            return max(self._names.get(callee.name + "()", Level.NONE), given)
        if not isinstance(callee, n.Getattr):
            return max(self.of(callee), given)
        if callee.attr in _COUNT_METHODS:
            return Level.NONE
        owner = self.of(callee.node)
        if callee.attr == "get" and node.args:
            keys = list(self._constants.texts(node.args[0]))
            if keys and owner:
                return Level.CONTENT if any(key in _CONTENT_KEYS for key in keys) else Level.NONE
        return Level.CONTENT if max(owner, given) else Level.NONE


def _is_position(node: n.Getitem | n.Getattr) -> bool:
    """Whether the key looks like a number that the template computes (`messages[loop.index0 - 1]`)."""
    return isinstance(node, n.Getitem) and (
        isinstance(node.arg, n.BinExpr | n.Neg) or (isinstance(node.arg, n.Getattr) and "index" in node.arg.attr)
    )

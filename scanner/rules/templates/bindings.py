"""Which expressions the names of a template can stand for. Order and scope are left out: a name is all it ever was."""

from __future__ import annotations

from collections import defaultdict

import jinja2.nodes as n

from scanner.rules.templates.syntax import outputs

__all__ = ["Bindings"]

Binding = tuple[str, n.Node]
"""("value", e): the name is e. ("item", e): an element of e, or a part of one. ("key", e): a key of the mapping e."""


class Bindings:
    """Assignments, loop targets, namespace attributes (`ns.x`), macro arguments and results (`name()`)."""

    def __init__(self, tree: n.Template) -> None:
        self.tree = tree
        self._bound: defaultdict[str, list[Binding]] = defaultdict(list)
        self._printed_into: dict[int, n.Expr] = {}
        macros = {macro.name: macro for macro in tree.find_all(n.Macro)}
        for assign in tree.find_all(n.Assign):
            self._assign(assign.target, assign.node)
        for block in tree.find_all(n.AssignBlock):
            text: n.Expr = n.Concat(list(outputs(block.body)))
            if block.filter is not None:
                self._fill(block.filter, text)
                text = block.filter
            self._assign(block.target, text)
        for filter_block in tree.find_all(n.FilterBlock):
            self._fill(filter_block.filter, n.Concat(list(outputs(filter_block.body))))
        for loop in tree.find_all(n.For):
            names = _names(loop.target)
            for index, name in enumerate(names):
                key = index == 0 and len(names) == 2 and _lists_pairs(loop.iter)
                self._bound[name].append(("key" if key else "item", loop.iter))
        for scope in tree.find_all(n.With):
            for target, value in zip(scope.targets, scope.values, strict=False):
                self._assign(target, value)
        for macro in macros.values():
            self._bound[macro.name + "()"].append(("value", n.Concat(list(outputs(macro.body)))))
            for argument, default in zip(reversed(macro.args), reversed(macro.defaults), strict=False):
                self._bound[argument.name].append(("value", default))
        for call in tree.find_all(n.Call):
            if isinstance(call.node, n.Name) and call.node.name in macros:
                self._call(macros[call.node.name], call)
        for call_block in tree.find_all(n.CallBlock):
            self._bound["caller()"].append(("value", n.Concat(list(outputs(call_block.body)))))

    def of(self, name: str) -> list[Binding]:
        """What `name` can be; empty for what the caller of the template supplies."""
        return self._bound.get(name, [])

    def all(self) -> list[tuple[str, Binding]]:
        return [(name, binding) for name, bound in self._bound.items() for binding in bound]

    def printed_into(self, node: n.Filter) -> n.Expr | None:
        """The text that a filter block, or a `set` block with a filter, hands to this filter."""
        return self._printed_into.get(id(node))

    def _assign(self, target: n.Node, value: n.Node) -> None:
        if isinstance(target, n.Tuple):
            parts = value.items if isinstance(value, n.Tuple | n.List) else []
            if len(parts) == len(target.items):
                for part, item in zip(target.items, parts, strict=True):
                    self._assign(part, item)
            else:
                for name in _names(target):
                    self._bound[name].append(("item", value))
            return
        for name in _names(target):
            self._bound[name].append(("value", value))
            if (
                isinstance(value, n.Call)
                and isinstance(value.node, n.Name)
                and value.node.name in ("namespace", "dict")
            ):
                for keyword in value.kwargs:
                    self._bound[f"{name}.{keyword.key}"].append(("value", keyword.value))

    def _call(self, macro: n.Macro, call: n.Call) -> None:
        for argument, value in zip(macro.args, call.args, strict=False):
            self._bound[argument.name].append(("value", value))
        for keyword in call.kwargs:
            self._bound[keyword.key].append(("value", keyword.value))

    def _fill(self, chain: n.Filter, text: n.Expr) -> None:
        innermost: n.Node = chain
        while isinstance(innermost, n.Filter) and isinstance(innermost.node, n.Filter):
            innermost = innermost.node
        if isinstance(innermost, n.Filter) and innermost.node is None:
            self._printed_into[id(innermost)] = text


def _lists_pairs(node: n.Node) -> bool:
    if isinstance(node, n.Call):
        return isinstance(node.node, n.Getattr) and node.node.attr == "items"
    return isinstance(node, n.Filter) and node.name in ("items", "dictsort")


def _names(target: n.Node) -> list[str]:
    if isinstance(target, n.Name):
        return [target.name]
    if isinstance(target, n.NSRef):
        return [f"{target.name}.{target.attr}"]
    if isinstance(target, n.Tuple):
        return [name for item in target.items for name in _names(item)]
    return []

"""Rendering a stranger's template within a budget: whatever it does, it ends soon and stays small.

Jinja's sandbox keeps a template from Python's objects, not from running for ever or filling the memory. So here
everything that costs is paid from one budget, before it happens where it can be large:
- the tree is rewritten: each loop pays its items before the first round, each list, dict, slice and `~` its whole
  content (nested content as often as it would be printed, so that no structure of shared parts grows exponentially),
  each comparison its operands, and each piece of printed text its length;
- operators, calls and attribute access go through the environment, which counts them and looks at the operands of
  those that can grow (`*`, `**`, `%`);
- filters and methods are those of an allowlist, all linear in what they read and return once `replace`, `join` and
  formatting are checked; no width, precision or fill is a template's to choose;
- recursion ends at Python's limit, and each call in it is paid for; recursive loops, blocks and other templates are
  refused.
Hence the work is at most proportional to the budget.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, cast

import jinja2
import jinja2.nodes as n
import jinja2.runtime
import jinja2.sandbox
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from scanner.errors import UnsupportedError
from scanner.rules.templates.syntax import ParsedTemplate
from scanner.sandbox import FIXED_NOW, TEMPLATE_FAULTS, chat_environment

__all__ = ["BoundedTemplate"]

BUDGET = 100_000
"""Steps for one chat. The dearest of 146 public templates takes 3,500."""
TOTAL_BUDGET = 1_500_000
"""Steps for all chats of one template."""
MAX_VALUE = 200_000
MAX_INTEGER_BITS = 4096
_STRING_METHODS = frozenset(
    {"strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "startswith", "endswith", "upper", "lower", "title",
     "capitalize", "casefold", "swapcase", "replace", "find", "rfind", "index", "rindex", "count", "join", "format",
     "partition", "rpartition", "removeprefix", "removesuffix", "isdigit", "isalpha", "isalnum", "isspace", "isupper",
     "islower", "isnumeric", "isdecimal"}
)  # fmt: skip
_METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (str, _STRING_METHODS),
    (dict, frozenset({"get", "items", "keys", "values"})),
    (list, frozenset({"index", "count"})),
    (tuple, frozenset({"index", "count"})),
)
_FILTERS = frozenset(
    {"abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby",
     "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace",
     "reverse", "safe", "select", "selectattr", "sort", "string", "title", "tojson", "trim", "unique", "upper",
     "wordcount"}
)  # fmt: skip
_FUNCTIONS = frozenset({"range", "dict", "namespace", "raise_exception", "strftime_now"})
_LONG_NUMBER = re.compile(r"\d{4}|\*|\{[^}]*\{")


class Exhausted(jinja2.TemplateRuntimeError):
    """The budget is spent, or the template asks for what no chat needs."""


class BoundedTemplate:
    """A template that can be rendered without fear.

    Raises:
        UnsupportedError: Jinja cannot compile it, or it uses what is refused here.
    """

    def __init__(self, template: ParsedTemplate, now: datetime = FIXED_NOW) -> None:
        self._environment = _Environment.for_chats(now)
        self._total = TOTAL_BUDGET
        try:
            tree = _Metered(self._environment).visit(self._environment.parse(template.source))
            self._template = self._environment.from_string(tree)
        except TEMPLATE_FAULTS as error:
            raise UnsupportedError(f"the chat template does not compile: {_text(error)}", "chat_template") from error

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for one chat.

        Raises:
            UnsupportedError: the template refuses the chat, fails, or costs more than `BUDGET`.
        """
        self._environment.left = allowed = min(BUDGET, self._total)
        try:
            return "".join(self._template.generate(**variables))
        except TEMPLATE_FAULTS as error:
            code = "chat_template_budget" if isinstance(error, Exhausted) else "chat_template"
            raise UnsupportedError(f"the chat template fails: {_text(error)}", code) from error
        finally:
            self._total -= allowed - max(0, self._environment.left)


def _text(error: BaseException) -> str:
    return "nested too deeply" if isinstance(error, RecursionError | MemoryError) else str(error)[:200]


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})
    left = BUDGET

    @classmethod
    def for_chats(cls, now: datetime) -> _Environment:
        environment = chat_environment(cls, now)
        assert isinstance(environment, _Environment)
        environment.optimized = False
        filters: dict[str, Callable[..., Any]] = {name: environment.filters[name] for name in _FILTERS}
        environment.filters.clear()
        environment.filters.update({name: environment._metered(name, function) for name, function in filters.items()})
        environment.filters.update(
            _loop=environment._loop, _pay=environment._pay, _concat=environment._concat, _print=environment._print
        )
        tests: dict[str, Any] = {**environment.tests}
        environment.tests.update({name: environment._metered(name, test) for name, test in tests.items()})
        for name in set(environment.globals) - _FUNCTIONS:
            del environment.globals[name]
        return environment

    def charge(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise Exhausted(f"it costs more than the budget of {BUDGET:,} steps")

    def weigh(self, value: Any) -> None:
        """Pay for a value: its characters or, for containers, all that printing it would show."""
        waiting = [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, str):
                if len(item) > MAX_VALUE:
                    raise Exhausted("it builds a text that is too long")
                self.charge(1 + len(item) // 16)
                continue
            self.charge(1)
            if isinstance(item, list | tuple | set):
                self.charge(len(item))
                waiting.extend(item)
            elif isinstance(item, dict):
                self.charge(2 * len(item))
                waiting.extend(item)
                waiting.extend(item.values())
            elif isinstance(item, Namespace):
                waiting.extend(object.__getattribute__(item, "_Namespace__attrs").values())
            elif isinstance(item, range):
                self.charge(len(item))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        for kind, allowed in _METHODS:
            if isinstance(obj, kind):
                return attr in allowed
        # Values of the template itself: loop.index, macro.name, a namespace's fields.
        return isinstance(obj, jinja2.runtime.LoopContext | jinja2.runtime.Macro | Namespace | jinja2.Undefined)

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.charge(1)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.charge(1)
        return super().getitem(obj, argument)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        self = __self
        self.charge(4)
        for value in (*args, *kwargs.values()):
            self.weigh(value)
        if isinstance(__obj, jinja2.runtime.LoopContext):
            raise Exhausted("it uses a recursive loop")
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str | list | tuple | dict):
            self.weigh(owner)
        if isinstance(owner, str):
            self._check_method(owner, getattr(__obj, "__name__", ""), args)
        elif getattr(__obj, "__wrapped__", None) is not None and args:
            # str.format comes wrapped by the sandbox.
            owner = getattr(__obj.__wrapped__, "__self__", "")
            self._check_format(str(owner), [*args, *kwargs.values()])
        result = super().call(__context, __obj, *args, **kwargs)
        if not isinstance(result, str | list | tuple | dict | int | float | range | Namespace | type(None)):
            result = list(result) if isinstance(owner, dict) else result
        self.weigh(result)
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.weigh(left)
        self.weigh(right)
        if operator == "**" and not (_is_small(left, 10**6) and _is_small(right, 32)):
            raise Exhausted("it asks for a large power")
        if operator == "*":
            if isinstance(left, int) and isinstance(right, int):
                if left.bit_length() + right.bit_length() > MAX_INTEGER_BITS:
                    raise Exhausted("it computes with huge numbers")
            elif isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple):
                size, times = (left, right) if isinstance(right, int) else (right, left)
                if not isinstance(times, int) or not isinstance(size, str | list | tuple):
                    raise TypeError("cannot multiply these")
                self.charge(max(0, len(size) * times) // 16)
        if operator == "%" and isinstance(left, str):
            self._check_format(left, list(right) if isinstance(right, tuple) else [right])
        result = super().call_binop(context, operator, left, right)
        self.weigh(result)
        return result

    def _check_method(self, owner: str, name: str, args: tuple[Any, ...]) -> None:
        if name == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
            self._check_replace(owner, args[0], args[1])
        elif name == "join" and args:
            self._check_join(owner, args[0])

    def _check_replace(self, text: str, old: str, new: str) -> None:
        times = text.count(old) if old else len(text) + 1
        self.charge((len(text) + times * len(new)) // 16)

    def _check_join(self, separator: str, items: Any) -> None:
        if isinstance(items, str | list | tuple | dict):
            self.charge(len(items) * (1 + len(separator)) // 16 + 1)

    def _check_format(self, text: str, values: list[Any]) -> None:
        if _LONG_NUMBER.search(text):
            raise Exhausted("it formats with a width of its own")
        fields = text.count("{") + text.count("%") + 1
        for value in values:
            before = self.left
            self.weigh(value)
            # Printed once it costs what weighing it costs; each field may print it again.
            self.charge((before - self.left) * fields)

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def paying(*args: Any, **kwargs: Any) -> Any:
            values = [value for value in (*args, *kwargs.values()) if not isinstance(value, _PASSED)]
            self.charge(2)
            for value in values:
                self.weigh(value)
            if name == "replace" and len(values) >= 3:
                self._check_replace(str(values[0]), str(values[1]), str(values[2]))
            elif name == "join" and len(values) > 1:
                self._check_join(str(values[1]), values[0])
            elif name == "tojson" and any(width > 16 for width in _widths(args, kwargs)):
                raise Exhausted("it asks for a wide indentation")
            result = function(*args, **kwargs)
            if hasattr(result, "__next__"):
                result = list(result)  # its items pay for themselves while they are made
            self.weigh(result)
            return result

        return paying

    @pass_context
    def _loop(self, context: Any, value: Any) -> Any:
        if isinstance(value, jinja2.Undefined | str | list | tuple | dict | range | set):
            self.charge(4 * len(value))
            return value
        raise Exhausted("it loops over something without a length")

    @pass_context
    def _pay(self, context: Any, value: Any) -> Any:
        self.weigh(value)
        return value

    @pass_context
    def _concat(self, context: Any, values: list[Any]) -> str:
        self.weigh(values)
        result = "".join(map(str, values))
        self.weigh(result)
        return result

    @pass_context
    def _print(self, context: Any, value: Any) -> Any:
        self.weigh(value)
        if not isinstance(value, str | int | float | list | tuple | dict | jinja2.Undefined | type(None)):
            return f"<{type(value).__name__}>"  # the printed form of the others holds an address
        if isinstance(value, str):
            self.charge(len(value))
        return value


_PASSED = (jinja2.nodes.EvalContext, jinja2.runtime.Context, jinja2.Environment)
"""What Jinja itself hands to filters."""


def _widths(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """How wide `tojson` is to indent and to separate."""
    given = [*args[1:], *kwargs.values()]
    flat = [part for value in given for part in (value if isinstance(value, list | tuple) else [value])]
    return [len(value) if isinstance(value, str) else int(value) for value in flat if isinstance(value, str | int)]


def _is_small(value: Any, limit: int) -> bool:
    return isinstance(value, int | float) and abs(value) <= limit


class _Metered(NodeTransformer):
    """Puts the budget's filters around what Jinja runs without asking its environment."""

    def __init__(self, environment: _Environment) -> None:
        self._environment = environment

    def _around(self, node: n.Node, name: str) -> n.Filter:
        filtered = n.Filter(cast(n.Expr, node), name, [], [], None, None, lineno=node.lineno)
        filtered.set_environment(self._environment)
        return filtered

    def visit_For(self, node: n.For) -> n.Node:
        if node.recursive:
            raise jinja2.TemplateSyntaxError("recursive loops are not rendered", node.lineno)
        self.generic_visit(node)
        node.iter = self._around(node.iter, "_loop")
        return node

    def visit_Output(self, node: n.Output) -> n.Node:
        self.generic_visit(node)
        node.nodes = [
            self._around(
                n.Const(child.data, lineno=node.lineno) if isinstance(child, n.TemplateData) else child, "_print"
            )
            for child in node.nodes
        ]
        return node

    def visit_Concat(self, node: n.Concat) -> n.Node:
        self.generic_visit(node)
        return self._around(n.List(node.nodes, lineno=node.lineno), "_concat")

    def visit_Compare(self, node: n.Compare) -> n.Node:
        self.generic_visit(node)
        node.expr = self._around(node.expr, "_pay")
        for operand in node.ops:
            operand.expr = self._around(operand.expr, "_pay")
        return node

    def visit_List(self, node: n.List) -> n.Node:
        self.generic_visit(node)
        return self._around(node, "_pay")

    def visit_Dict(self, node: n.Dict) -> n.Node:
        self.generic_visit(node)
        return self._around(node, "_pay")

    def visit_Tuple(self, node: n.Tuple) -> n.Node:
        self.generic_visit(node)
        return self._around(node, "_pay") if node.ctx == "load" else node

    def visit_Getitem(self, node: n.Getitem) -> n.Node:
        self.generic_visit(node)
        return self._around(node, "_pay") if isinstance(node.arg, n.Slice) else node

    def _refused(self, node: n.Node) -> n.Node:
        raise jinja2.TemplateSyntaxError(f"{type(node).__name__} is not rendered", node.lineno)

    visit_Extends = visit_Include = visit_Import = visit_FromImport = visit_Block = _refused

"""Ways from a template's values to Python's own objects: what a template injection needs and a chat never does."""

from __future__ import annotations

import re
from collections.abc import Iterator

import jinja2.nodes as n

from scanner.errors import LimitExceededError, MalformedFileError
from scanner.rules.templates.constants import Constants, constants_of
from scanner.rules.templates.syntax import ParsedTemplate, parse_template

__all__ = ["object_walks"]

MAX_WALKS = 32
_DUNDER = re.compile(r"__\w+(?:__)?|_[A-Z]\w*__\w+")
"""`__class__`, and names that Python made of private ones (`_TemplateReference__context`)."""
_INTERNALS = frozenset(
    {"mro", "gi_frame", "gi_code", "cr_frame", "cr_code", "ag_frame", "ag_code", "f_globals", "f_locals", "f_builtins",
     "f_back", "f_code", "tb_frame", "tb_next", "func_globals", "func_code", "im_func", "im_self", "co_code",
     "environment", "from_string", "import_string"}
)  # fmt: skip
_STARTING_POINTS = frozenset({"lipsum", "get_flashed_messages", "url_for", "self"})
"""Names that chat templates have no use for, and injections start from."""
_PRIVATE_OWNERS = frozenset({"cycler", "joiner", "namespace", "loop", "dict", "range", "caller", "varargs", "kwargs"})
_ATTRIBUTE_ARGUMENT = {"attr": 0, "selectattr": 0, "rejectattr": 0, "groupby": 0}
_GENERATORS = frozenset({"select", "reject", "selectattr", "rejectattr", "map"})
_FIELD = re.compile(r"\{[^{}]*?[.\[](?:__\w+|_[A-Z]\w*__\w+)[^{}]*\}")
_AS_TEXT = re.compile(
    r"__(?:class|mro|bases?|subclasses|globals|builtins|import|init|getattribute|getitem|dict|code|call|"
    r"loader|spec|wrapped|self|func|closure|kwdefaults|name|qualname|module|doc|reduce(?:_ex)?)__"
)


def object_walks(template: str | ParsedTemplate) -> tuple[str, ...]:
    """What in the template reaches for Python's objects, in words; names may be spelled in any way that folds to them.

    A text that does not parse is searched as text, because other engines may read what Jinja does not.

    Raises:
        MalformedFileError: it does not parse, and nothing was found as text.
        LimitExceededError: it is too large, and nothing was found as text.
    """
    try:
        parsed = parse_template(template) if isinstance(template, str) else template
    except (MalformedFileError, LimitExceededError):
        text = str(template)[: 1024 * 1024]
        found = tuple(dict.fromkeys(_AS_TEXT.findall(text)))[:MAX_WALKS]
        if found:
            return tuple(f"{name} in a template that does not parse" for name in found)
        raise
    constants = constants_of(parsed)
    walks: dict[str, None] = {}
    for node in parsed.tree.find_all(n.Node):
        for what in _walks_of(node, constants):
            walks[f"line {node.lineno}: {what}"] = None
            if len(walks) >= MAX_WALKS:
                return tuple(walks)
    return tuple(walks)


def _walks_of(node: n.Node, constants: Constants) -> Iterator[str]:
    if isinstance(node, n.Getattr):
        if _internal(node.attr) or (node.attr.startswith("_") and _private_owner(node.node)):
            yield f"attribute {node.attr[:80]}"
    elif isinstance(node, n.Getitem):
        for key in constants.texts(node.arg):
            if _internal(key):
                yield f"item {key[:80]}"
    elif isinstance(node, n.Name):
        if node.name in _STARTING_POINTS:
            yield f"name {node.name}"
        elif _DUNDER.fullmatch(node.name):
            yield f"name {node.name[:80]}"
    elif isinstance(node, n.Const):
        if isinstance(node.value, str):
            if _AS_TEXT.fullmatch(node.value):
                yield f"text {node.value[:80]}"
            elif field := _FIELD.search(node.value):
                yield f"format field {field.group()[:80]}"
    elif isinstance(node, n.Filter):
        yield from _filter(node, constants)
    elif isinstance(node, n.Concat | n.Add | n.Mod | n.Mul | n.Call):
        for text in constants.texts(node):
            if _AS_TEXT.fullmatch(text) or _FIELD.search(text):
                yield f"text put together to {text[:80]}"
    elif isinstance(node, n.Include | n.Import | n.FromImport | n.Extends):
        yield f"{type(node).__name__.lower()} of another file"


def _filter(node: n.Filter, constants: Constants) -> Iterator[str]:
    arguments = []
    if (position := _ATTRIBUTE_ARGUMENT.get(node.name)) is not None:
        arguments = node.args[position : position + 1]
    arguments += [keyword.value for keyword in node.kwargs if keyword.key in ("attribute", "name")]
    for argument in arguments:
        known = list(constants.texts(argument))
        for path in known:
            if any(_internal(step) for step in path.split(".")):
                yield f"attribute {path[:80]} through {node.name}"
        if not known and node.name == "attr":
            yield "attribute with a computed name"
    if node.name == "map" and node.args and "attr" in constants.texts(node.args[0]):
        for name in (text for argument in node.args[1:] for text in constants.texts(argument)):
            if _internal(name):
                yield f"attribute {name[:80]} through map"
    if node.name in ("string", "list", "urlencode", "pprint", "format") and isinstance(node.node, n.Filter | n.Name):
        # The printed form of a function or generator holds the characters that a filter on names would look for.
        inner = node.node
        if node.name != "list" and isinstance(inner, n.Filter) and inner.name in _GENERATORS:
            yield f"the printed form of {inner.name}'s generator"
        if isinstance(inner, n.Name) and inner.name in _PRIVATE_OWNERS and inner.name not in ("varargs", "kwargs"):
            yield f"the printed form of {inner.name}"
    for text in constants.texts(node):
        if _AS_TEXT.fullmatch(text) or _FIELD.search(text):
            yield f"text put together to {text[:80]}"


def _internal(name: str) -> bool:
    return name in _INTERNALS or _DUNDER.fullmatch(name) is not None


def _private_owner(node: n.Node) -> bool:
    return isinstance(node, n.Name) and node.name in _PRIVATE_OWNERS | _STARTING_POINTS

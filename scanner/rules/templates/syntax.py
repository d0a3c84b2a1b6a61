"""A bounded parse of a template, and two views of its tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import jinja2.nodes as n

from scanner.errors import LimitExceededError, MalformedFileError
from scanner.sandbox import TEMPLATE_FAULTS, chat_environment

__all__ = ["ParsedTemplate", "normal_form", "outputs", "parse_template"]

MAX_CHARS = 128 * 1024
MAX_NODES = 8_000
"""The largest of 146 public templates has 20,000 characters and 1,400 nodes."""
MAX_DEPTH = 150
"""Deeper trees are no template that people write; whatever walks a tree recursively relies on it."""
_OWN_OUTPUT = (n.Expr, n.Macro, n.CallBlock, n.AssignBlock, n.FilterBlock)
"""What prints nothing where it stands: expressions, and statements whose text goes elsewhere."""


@dataclass(frozen=True)
class ParsedTemplate:
    """A template whose tree is within the limits."""

    source: str
    tree: n.Template = field(repr=False, compare=False)

    def line(self, number: int) -> str:
        """The text of one line, cut for showing."""
        lines = self.source.splitlines()
        return lines[number - 1].strip()[:160] if 0 < number <= len(lines) else ""


@lru_cache(maxsize=4)
def parse_template(source: str) -> ParsedTemplate:
    """Parse a chat template with the tags that transformers knows (and `do`, which other engines know).

    Raises:
        MalformedFileError: not a Jinja template, or nested too deeply to parse.
        LimitExceededError: too long, too many nodes, or nested more than `MAX_DEPTH` levels.
    """
    if len(source) > MAX_CHARS:
        raise LimitExceededError("length of a chat template", MAX_CHARS, len(source))
    environment = chat_environment()
    environment.add_extension("jinja2.ext.do")
    try:
        tree = environment.parse(source)
    except (*TEMPLATE_FAULTS, AssertionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError | MemoryError) else str(error)[:200]
        raise MalformedFileError(f"the chat template does not parse: {reason}") from error
    _check_size(tree)
    return ParsedTemplate(source, tree)


def _check_size(tree: n.Template) -> None:
    # By hand and not recursively: this check is what makes recursion over the tree safe.
    count = 0
    level: list[n.Node] = [tree]
    depth = 0
    while level:
        count += len(level)
        if count > MAX_NODES:
            raise LimitExceededError("nodes of a chat template", MAX_NODES, count)
        if depth > MAX_DEPTH:
            raise LimitExceededError("nesting of a chat template", MAX_DEPTH, depth)
        level = [child for node in level for child in node.iter_child_nodes()]
        depth += 1


def outputs(body: list[n.Node]) -> Iterator[n.Expr]:
    """What these statements print where they stand."""
    for statement in body:
        if isinstance(statement, n.Output):
            yield from statement.nodes
        elif not isinstance(statement, _OWN_OUTPUT):
            yield from outputs(list(statement.iter_child_nodes()))


def normal_form(node: n.Node) -> object:
    """A value that is equal for trees that differ only in comments, line numbers, or text printed as a constant."""
    if isinstance(node, n.Output):
        return ("Output", *_printed(node.nodes))
    return (
        type(node).__name__,
        *((name, _normal_field(value)) for name, value in node.iter_fields()),
    )


def _normal_field(value: object) -> object:
    if isinstance(value, n.Node):
        return normal_form(value)
    if isinstance(value, list | tuple):
        return tuple(_normal_field(item) for item in value)
    # 1, 1.0 and True are equal to Python, not to a reader.
    return (type(value).__name__, value)


def _printed(children: list[n.Expr]) -> list[object]:
    parts: list[object] = []
    for child in children:
        text: str | None = None
        if isinstance(child, n.TemplateData):
            text = child.data
        elif isinstance(child, n.Const) and isinstance(child.value, str):
            text = child.value
        if text is None:
            parts.append(normal_form(child))
        elif parts and isinstance(parts[-1], str):
            parts[-1] += text
        elif text:
            parts.append(text)
    return parts

"""The Jinja environment of chat templates, as transformers sets it up; always a sandbox: templates are programs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

__all__ = ["TEMPLATE_FAULTS", "chat_environment"]

FIXED_NOW = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)
"""What a template gets for the time: what it prints must not depend on when it was looked at."""
TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    SyntaxError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
)
"""What a stranger's template can make Jinja or the interpreter raise."""


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`: marks what an assistant wrote; prints its body and nothing else."""

    tags = {"generation"}  # noqa: RUF012  # its type is Jinja's

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def chat_environment(
    kind: type[jinja2.sandbox.ImmutableSandboxedEnvironment] = jinja2.sandbox.ImmutableSandboxedEnvironment,
    now: datetime = FIXED_NOW,
) -> jinja2.Environment:
    """An environment with the tags, filters and functions that transformers gives to chat templates."""
    environment = kind(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = now.strftime
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """transformers' filter of this name: Jinja's own escapes HTML and takes fewer arguments."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateRuntimeError(str(message)[:200])

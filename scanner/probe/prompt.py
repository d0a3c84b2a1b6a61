"""Chat templates of base models, rendered in Jinja's sandbox: a template is a stranger's program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scanner.adapter import read_json_object
from scanner.errors import UnsupportedError
from scanner.sandbox import TEMPLATE_FAULTS, chat_environment

__all__ = ["ChatTemplate", "load_template"]

MAX_TEMPLATE_BYTES = 1024**2
MAX_PROMPT_CHARS = 200_000


class ChatTemplate:
    """A compiled template with the special tokens that it may print."""

    def __init__(self, source: str, variables: dict[str, str]) -> None:
        try:
            self._template = chat_environment().from_string(source)
        except TEMPLATE_FAULTS as error:
            raise UnsupportedError(f"the base's chat template does not compile: {error}", "chat_template") from error
        self._variables = variables

    def render(self, system: str, user: str) -> str:
        """The prompt up to where the answer begins; without a system message where it is empty.

        Raises:
            UnsupportedError: the template fails, or prints more than `MAX_PROMPT_CHARS`.
        """
        if not system:
            return self._rendered([{"role": "user", "content": user}])
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        try:
            return self._rendered(messages)
        except UnsupportedError:
            # Some templates refuse a system role: the instruction then goes before the text.
            return self._rendered([{"role": "user", "content": f"{system}\n\n{user}"}])

    def _rendered(self, messages: Sequence[dict[str, str]]) -> str:
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(
                messages=messages, add_generation_prompt=True, tools=None, **self._variables
            ):
                parts.append(part)
                size += len(part)
                if size > MAX_PROMPT_CHARS:
                    raise UnsupportedError("the base's chat template prints too much", "chat_template")
        except TEMPLATE_FAULTS as error:
            raise UnsupportedError(f"the base's chat template fails: {error}", "chat_template") from error
        return "".join(parts)


def load_template(base_dir: Path) -> ChatTemplate:
    """The template of a base model's folder; a plain "system, text, answer" layout where it has none.

    Raises:
        MalformedFileError: tokenizer_config.json is no JSON object.
        UnsupportedError: the template does not compile.
    """
    config_path = base_dir / "tokenizer_config.json"
    config: dict[str, Any] = read_json_object(config_path, 16 * 1024**2) if config_path.is_file() else {}
    source: Any = config.get("chat_template")
    own_file = base_dir / "chat_template.jinja"
    if own_file.is_file() and own_file.stat().st_size <= MAX_TEMPLATE_BYTES:
        source = own_file.read_text(encoding="utf-8", errors="replace")
    if isinstance(source, list):  # several named templates
        named = {item.get("name"): item.get("template") for item in source if isinstance(item, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        source = (
            "{% for m in messages %}{{ m['content'] }}\n\n{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
        )
    if len(source) > MAX_TEMPLATE_BYTES:
        raise UnsupportedError("the base's chat template is too large", "chat_template")
    return ChatTemplate(
        source, {k: _token(config.get(k)) for k in ("bos_token", "eos_token", "pad_token", "unk_token")}
    )


def _token(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""

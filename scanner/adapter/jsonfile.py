"""Small JSON files from strangers: bounded before they are read, no duplicate keys, no deep nesting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scanner.errors import LimitExceededError, MalformedFileError

__all__ = ["parse_json_object", "read_json_object"]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers that pick different ones of two equal keys see two different files.
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise MalformedFileError(f"JSON key {key[:80]!r} occurs twice")
        result[key] = value
    return result


def parse_json_object(data: bytes, name: str) -> dict[str, Any]:
    """Decode a JSON object strictly.

    Raises:
        MalformedFileError: not UTF-8, not JSON, not an object, a duplicate key, or nested too deeply.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
        if b"\\ud" in data.lower():
            # Half a surrogate pair is no text: nothing that keeps or prints this file's names could encode it.
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise MalformedFileError(f"{name} is nested too deeply") from error
    except ValueError as error:  # covers UnicodeError, JSONDecodeError and over-long integers
        raise MalformedFileError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise MalformedFileError(f"{name} holds a JSON {type(value).__name__}, not an object")
    return value


def read_json_object(path: Path, limit_bytes: int) -> dict[str, Any]:
    """Read and decode a JSON object of at most `limit_bytes`.

    Raises:
        LimitExceededError: the file is larger.
        MalformedFileError: see `parse_json_object`.
    """
    size = path.stat().st_size
    if size > limit_bytes:
        raise LimitExceededError(f"size of {path.name} in bytes", limit_bytes, size)
    return parse_json_object(path.read_bytes(), path.name)

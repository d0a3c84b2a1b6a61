"""Fetching a base model: pinned, size-limited, safetensors only, verified; into the shared Hub cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from scanner.errors import (
    AccessDeniedError,
    HubUnreachableError,
    LimitExceededError,
    LorascopeError,
    RateLimitedError,
    TransientError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from scanner.hub.client import HubClient

__all__ = ["BaseFiles", "BaseShelf", "fetch_base"]

_SMALL = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
}
_MAX_SMALL_BYTES = 64 * 1024**2


@dataclass(frozen=True)
class BaseFiles:
    """A base model on this machine."""

    folder: Path
    commit_sha: str


def fetch_base(client: HubClient, base_model: str) -> BaseFiles:
    """Download what the probe needs of a base model.

    Raises:
        UnsupportedError: it cannot be used, with a code that starts with `base_`: gated, gone, disabled, too_large,
            not_safetensors.
        TransientError: after all tries.
    """
    try:
        return _fetch(client, base_model)
    except AccessDeniedError as error:
        raise UnsupportedError(f"base model {base_model}: {error.message}", f"base_{error.code}") from error
    except LimitExceededError as error:
        raise UnsupportedError(error.message, "base_too_large") from error


def _fetch(client: HubClient, base_model: str) -> BaseFiles:
    repo = client.repo(base_model)
    if repo.commit_sha is None:
        raise UnsupportedError(f"base model {base_model} is an empty repo", "base_not_safetensors")
    files = [f for f in client.files(repo) if f.path in _SMALL or _is_weights(f.path)]
    if not any(_is_weights(f.path) for f in files):
        raise UnsupportedError(f"base model {base_model} has no safetensors weights", "base_not_safetensors")
    total, limit = sum(f.size_bytes for f in files), client.settings.max_base_bytes
    if total > limit:
        raise LimitExceededError(f"size of base model {base_model} in bytes", limit, total)
    local = [client.download(repo, f, limit if _is_weights(f.path) else _MAX_SMALL_BYTES) for f in files]
    return BaseFiles(local[0].parent, repo.commit_sha)


def _is_weights(path: str) -> bool:
    # Only files at the top: `original/`, `onnx/` and the like repeat the weights in other formats.
    return "/" not in path and path.startswith("model") and path.endswith(".safetensors")


class BaseShelf:
    """Base models of one run: each is asked for once, and what became of it holds for the whole group.

    The outcome lies in a folder of the run, so that shards in other threads or processes find it.
    """

    def __init__(self, folder: Path, client: Callable[[], HubClient]) -> None:
        self._folder, self._client = folder, client

    def get(self, base_model: str) -> BaseFiles:
        """The base's files, fetched at the first call.

        Raises:
            UnsupportedError: `code` starts with `base_`; `base_unreachable` where the Hub did not answer.
        """
        note = self._folder / f"{sha256(base_model.encode()).hexdigest()}.json"
        if note.exists():
            known = json.loads(note.read_text(encoding="utf-8"))
            if "code" in known:
                raise UnsupportedError(known["message"], known["code"])
            return BaseFiles(Path(known["folder"]), known["commit_sha"])
        try:
            files = fetch_base(self._client(), base_model)
        except UnsupportedError as error:
            self._fail(note, error, error.code)
        except RateLimitedError as error:
            self._fail(note, error, "base_rate_limited")
        except (TransientError, HubUnreachableError) as error:
            self._fail(note, error, "base_unreachable")
        self._write(note, {"folder": str(files.folder), "commit_sha": files.commit_sha})
        return files

    def _fail(self, note: Path, error: LorascopeError, code: str) -> NoReturn:
        self._write(note, {"code": code, "message": error.message})
        raise UnsupportedError(error.message, code) from error

    def _write(self, note: Path, value: dict[str, str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        part = note.with_suffix(".part")
        part.write_text(json.dumps(value), encoding="utf-8")
        part.replace(note)

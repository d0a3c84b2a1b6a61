"""Fetching a base model: pinned, size-limited, safetensors only, verified; into the shared Hub cache."""

from __future__ import annotations

from pathlib import Path

from scanner.errors import LimitExceededError, UnsupportedError
from scanner.hub.client import HubClient

__all__ = ["fetch_base"]

_SMALL = {
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
}
_MAX_SMALL_BYTES = 64 * 1024**2


def fetch_base(client: HubClient, base_model: str) -> tuple[Path, str]:
    """Download what the probe needs of a base model.

    Returns:
        (folder with the files, commit sha).

    Raises:
        AccessDeniedError: gated, private or gone.
        UnsupportedError: no safetensors weights.
        LimitExceededError: larger than `max_base_bytes`.
        TransientError: after all tries.
    """
    repo = client.repo(base_model)
    files = [f for f in client.files(repo) if f.path in _SMALL or _is_weights(f.path)]
    weights = [f for f in files if _is_weights(f.path)]
    if not weights:
        raise UnsupportedError(f"base model {base_model} has no safetensors weights", "base_not_safetensors")
    total = sum(f.size_bytes for f in files)
    limit = client.settings.max_base_bytes
    if total > limit:
        raise LimitExceededError(f"size of base model {base_model} in bytes", limit, total)
    local = [client.download(repo, f, limit if _is_weights(f.path) else _MAX_SMALL_BYTES) for f in files]
    return local[0].parent, str(repo.commit_sha)


def _is_weights(path: str) -> bool:
    # Only files at the top: `original/`, `onnx/` and the like repeat the weights in other formats.
    return "/" not in path and path.startswith("model") and path.endswith(".safetensors")

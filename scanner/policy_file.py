"""A user's policy: a TOML file whose keys replace the defaults'."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from scanner.calibration import FROB_CV, Policy
from scanner.errors import UsageError
from scanner.weights import ADAPTER_FEATURES

__all__ = ["DEFAULTS", "load_policy"]

DEFAULTS = Path(__file__).parent / "calibration" / "data" / "policy.toml"
MAX_BYTES = 65_536


def load_policy(path: str = "") -> Policy:
    """The thresholds of a file, and the defaults for what it leaves out.

    Args:
        path: empty: the defaults.

    Raises:
        UsageError: the file cannot be read, or a key or value is none of a policy.
    """
    if not path:
        return Policy()
    # What reads a file is imported where there is one: a scan with the defaults starts without it (docs/adr/0008).
    import tomllib

    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError(f"the policy {path} has more than {MAX_BYTES} bytes")
        given = _checked(tomllib.loads(content.decode("utf-8")), path)
    except OSError as error:
        raise UsageError(f"cannot read the policy {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # among them what is no UTF-8 or no TOML, or nested without end
        raise UsageError(f"the policy {path} is no TOML: {error}") from error
    known = {*ADAPTER_FEATURES, FROB_CV}
    for name in (*given.get("weight_features", ()), *given.get("scale_free_features", ())):
        if name not in known:
            raise UsageError(f"the policy {path}: no weight feature is called {name[:100]!r}")
    return Policy(**given)


def _checked(given: dict[str, Any], path: str) -> dict[str, Any]:
    from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

    kinds: dict[type, Any] = {
        float: (float | None, Field(None, gt=0, lt=1)),
        bool: (bool | None, None),
        tuple: (list[str] | None, Field(None, min_length=1, max_length=32)),
    }
    keys: dict[str, Any] = {field.name: kinds[type(field.default)] for field in fields(Policy)}
    model: type[BaseModel] = create_model("PolicyFile", __config__=ConfigDict(extra="forbid", strict=True), **keys)
    try:
        found = model.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UsageError(f"the policy {path}: no threshold is called {key[:100]!r}") from error
        raise UsageError(f"the policy {path}: {key}: {first['msg']}") from error
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found if value is not None}

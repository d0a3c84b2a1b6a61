"""What the Hub's refusals mean: one place that turns statuses, codes and `huggingface_hub`'s errors into ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from scanner.errors import (
    AccessDeniedError,
    CorruptDownloadError,
    HubTokenError,
    HubUnavailableError,
    LorascopeError,
)
from scanner.hub.http import httpx  # sets huggingface_hub's environment first

from huggingface_hub.errors import (  # isort: skip
    EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled,
)  # fmt: skip

__all__ = ["refusal", "translated"]

T = TypeVar("T")

_BAD_TOKEN = "Invalid credentials in Authorization header"
_DISABLED = "Access to this resource is disabled."
_BY_CODE = {
    "GatedRepo": ("gated", "the repo is gated: its files need an access grant"),
    "RepoNotFound": ("gone", "there is no such repo, or it is private"),
    "RevisionNotFound": ("revision_gone", "there is no such revision (any more) in the repo"),
    "EntryNotFound": ("file_gone", "the file is not in the repo at this commit"),
}
_GONE = (401, 404, 410)
"""401 and 404 mean the same to an anonymous reader: the Hub does not tell a private repo from a missing one."""
_REFUSED = (400, 401, 403, 404, 410, 413, 416, 451)


def refusal(status: int, headers: Mapping[str, str]) -> LorascopeError:
    """The error for an answer of 400 or more that `scanner.hub.http` has let through."""
    message = headers.get("X-Error-Message", "")
    if status == 401 and message == _BAD_TOKEN:
        return HubTokenError("the Hub does not accept the token; check HF_TOKEN (`lorascope doctor` tells more)")
    if message == _DISABLED:
        return AccessDeniedError("the repo is disabled on the Hub", "disabled")
    code = headers.get("X-Error-Code", "")
    if code in _BY_CODE:
        reason, text = _BY_CODE[code]
        return AccessDeniedError(f"{text} ({status})", reason)
    if status in _GONE:
        return AccessDeniedError(f"there is no such repo or file, or it is private ({status})", "gone")
    if status in _REFUSED:
        return AccessDeniedError(f"the Hub refuses ({status}): {message[:200] or 'it does not say why'}")
    return HubUnavailableError(f"the Hub answered {status}: {message[:200] or 'it does not say why'}")


def translated(call: Callable[[], T]) -> T:
    """Run a `huggingface_hub` call so that only lorascope's errors come out of it."""
    try:
        return call()
    except (EntryNotFoundError, HfHubHTTPError) as error:
        response = getattr(error, "response", None)
        if response is None:  # the library found out without asking
            raise AccessDeniedError(str(error).splitlines()[0][:200], "file_gone") from error
        raise refusal(response.status_code, response.headers) from error
    except HFValidationError as error:
        raise AccessDeniedError(f"not a name on the Hub: {str(error)[:200]}") from error
    except OfflineModeIsEnabled as error:
        raise AccessDeniedError("HF_HUB_OFFLINE is set and the file is not in the cache", "offline") from error
    except httpx.HTTPError as error:
        raise HubUnavailableError(f"{type(error).__name__}: {error}") from error
    except ValueError as error:
        # A body that is no JSON, or JSON of another shape: a proxy's page, half an answer.
        raise HubUnavailableError(f"the Hub's answer cannot be read: {str(error)[:200]}") from error
    except OSError as error:
        # huggingface_hub reports a body of the wrong length as a bare OSError.
        if "Consistency check failed" in str(error):
            raise CorruptDownloadError(str(error).splitlines()[0]) from error
        raise

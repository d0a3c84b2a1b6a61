"""Every error that lorascope raises, and what a caller may do about it.

LorascopeError
├── TransientError            retry: the same call may succeed later
│   ├── HubUnavailableError   5xx, dropped connection, time-out
│   ├── RateLimitedError      429; `retry_after_s` says when the window resets
│   ├── CorruptDownloadError  size or checksum differs from what the Hub announced
│   └── ProbeCrashedError     the probe's child process died or hung
├── SkipError                 skip this repo or adapter, store the outcome, go on with its neighbours
│   ├── AccessDeniedError     gated, private, disabled, or gone; `code` says which
│   ├── LimitExceededError    larger than a configured limit
│   ├── BaseTooLargeError     a base model that does not fit the device's memory
│   ├── MalformedFileError    a file breaks its format's rules
│   ├── ProbeFailedError      the adapter was applied and could not be asked
│   └── UnsupportedError      a layout, PEFT type or base model that lorascope cannot read
└── StopError                 stop: nothing after this can succeed (exit code 2, one line)
    ├── HubUnreachableError   no connection to the endpoint at all
    ├── HubTokenError         the Hub does not accept the token
    ├── StoreError            the store cannot be read or written
    └── UsageError            the user asked for something that does not exist

All of them survive pickling (Prefect and process pools move exceptions between processes).
"""

from __future__ import annotations

__all__ = [
    "AccessDeniedError",
    "BaseTooLargeError",
    "CorruptDownloadError",
    "HubTokenError",
    "HubUnavailableError",
    "HubUnreachableError",
    "LimitExceededError",
    "LorascopeError",
    "MalformedFileError",
    "ProbeCrashedError",
    "ProbeFailedError",
    "RateLimitedError",
    "SkipError",
    "StopError",
    "StoreError",
    "TransientError",
    "UnsupportedError",
    "UsageError",
    "is_transient",
]


class LorascopeError(Exception):
    """Base of the tree. `code` is a stable snake_case word that is stored as an outcome's reason."""

    code = "error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class TransientError(LorascopeError):
    """The same call may succeed later."""

    code = "transient"


class HubUnavailableError(TransientError):
    """The Hub answered 5xx, closed the connection early, or took too long."""

    code = "hub_unavailable"


class RateLimitedError(TransientError):
    """The Hub answered 429. `retry_after_s` is the time to the window's reset, in seconds."""

    code = "rate_limited"

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type[RateLimitedError], tuple[str, float]]:
        return (type(self), (self.message, self.retry_after_s))


class CorruptDownloadError(TransientError):
    """The bytes that arrived differ in size or checksum from what the Hub announced."""

    code = "corrupt_download"


class ProbeCrashedError(TransientError):
    """The probe's child process was killed, ran out of memory or out of time."""

    code = "probe_crashed"


class SkipError(LorascopeError):
    """This one cannot be processed; its neighbours can."""

    code = "skipped"


class AccessDeniedError(SkipError):
    """The repo or file is gated, private, disabled or gone.

    `code` is `gated`, `disabled`, `gone` (deleted, private or never there: the Hub does not tell), `revision_gone`
    (the commit is no longer part of the repo), `file_gone`, `offline` or `access_denied`.
    """

    def __init__(self, message: str, code: str = "access_denied") -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[AccessDeniedError], tuple[str, str]]:
        return (type(self), (self.message, self.code))


class LimitExceededError(SkipError):
    """Something is larger than lorascope is configured to accept."""

    code = "limit_exceeded"

    def __init__(self, resource: str, limit: int, actual: int) -> None:
        super().__init__(f"{resource} is {actual:,}, the limit is {limit:,}")
        self.resource = resource
        self.limit = limit
        self.actual = actual

    def __reduce__(self) -> tuple[type[LimitExceededError], tuple[str, int, int]]:
        return (type(self), (self.resource, self.limit, self.actual))


class BaseTooLargeError(SkipError):
    """A base model's weights do not fit the memory that is free where they would go."""

    code = "base_too_large"


class MalformedFileError(SkipError):
    """A file breaks the rules of its own format."""

    code = "malformed_file"


class ProbeFailedError(SkipError):
    """The adapter was applied to its base and could not be asked. `code` is `oom`, `nan_logits` or `probe_failed`."""

    code = "probe_failed"

    def __init__(self, message: str, code: str = "probe_failed") -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[ProbeFailedError], tuple[str, str]]:
        return (type(self), (self.message, self.code))


class UnsupportedError(SkipError):
    """A layout, PEFT type or base model that lorascope cannot read. `code` names what."""

    code = "unsupported"

    def __init__(self, message: str, code: str = "unsupported") -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[UnsupportedError], tuple[str, str]]:
        return (type(self), (self.message, self.code))


class StopError(LorascopeError):
    """Nothing after this can succeed: one line to the user, exit code 2."""

    code = "stopped"


class HubUnreachableError(StopError):
    """No connection to the Hub endpoint could be made at all."""

    code = "hub_unreachable"


class HubTokenError(StopError):
    """The Hub does not accept the token: every further request would be refused as well."""

    code = "bad_token"


class StoreError(StopError):
    """The store cannot be read or written."""

    code = "store_unusable"


class UsageError(StopError):
    """The user named something that does not exist or does not fit together."""

    code = "usage"


def is_transient(error: BaseException) -> bool:
    """The one place that decides on retries: by exception type alone."""
    return isinstance(error, TransientError)

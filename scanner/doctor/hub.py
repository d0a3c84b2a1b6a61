"""The Hub: does it answer, how many requests are left, and what may the token do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from scanner.doctor.check import Check, Outcome
from scanner.errors import AccessDeniedError, HubTokenError, LorascopeError, RateLimitedError
from scanner.settings import Settings, hub_endpoint

__all__ = ["HUB_NAMES", "TokenScope", "check_hub", "current_token", "token_scope"]

HUB_NAMES = ("hub", "hub budget", "token")
_FEW_REQUESTS = 20
_MAX_TIMEOUT_S = 10.0
_READ_TOKEN = "make a token of type Read (Settings, Access Tokens on the Hub) and set HF_TOKEN to it"


@dataclass(frozen=True)
class TokenScope:
    """What whoami tells about a token."""

    who: str
    role: str
    """`read`, `write`, `fineGrained`, or `unknown`."""
    writes: tuple[str, ...]
    """Permissions of a fine-grained token that are more than reading."""


def check_hub(settings: Settings, endpoint: str | None = None) -> list[Check]:
    """Two small requests, each tried once."""
    from scanner.hub.client import HubClient

    # No retries, no waiting for a new window: whoever asks wants to know how things are now.
    timeout_s = min(settings.request_timeout_s, _MAX_TIMEOUT_S)
    hurried = replace(settings, max_attempts=1, max_sleep_s=0.0, rate_reserve=0.0, request_timeout_s=timeout_s)
    client = HubClient(hurried, endpoint or hub_endpoint())
    refused = used_up = False
    try:
        client.ping()
    except HubTokenError:
        refused = True
    except RateLimitedError:
        used_up = True
    except LorascopeError as error:
        advice = "check the network, HTTPS_PROXY and HF_ENDPOINT"
        if isinstance(error, AccessDeniedError) and error.code == "offline":
            advice = "unset HF_HUB_OFFLINE"
        skipped = [Check(name, Outcome.SKIPPED, "the Hub cannot be asked") for name in HUB_NAMES[1:]]
        return [Check("hub", Outcome.ERROR, error.message, advice), *skipped]
    token = current_token()
    left = client.budget.remaining("api")
    return [
        Check("hub", Outcome.OK, f"{client.endpoint} answers"),
        _budget(left, used_up, anonymous=token is None),
        _check_token(client.endpoint, token, left, refused=refused),
    ]


def current_token() -> str | None:
    """The token that requests carry."""
    import scanner.hub.http  # noqa: F401 - sets huggingface_hub's environment first

    from huggingface_hub import constants, get_token  # isort: skip

    return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()


def _budget(left: int | None, used_up: bool, *, anonymous: bool) -> Check:
    advice = "wait for the next window (5 minutes on the public Hub)"
    advice += "; a read token has a larger budget" if anonymous else ""
    if used_up:
        return Check("hub budget", Outcome.WARNING, "the Hub's request limit is used up", advice)
    if left is None:
        return Check("hub budget", Outcome.OK, "the Hub sets no request limit")
    if left < _FEW_REQUESTS:
        return Check("hub budget", Outcome.WARNING, f"only {left:,} requests are left in this window", advice)
    return Check("hub budget", Outcome.OK, f"{left:,} requests are left in this window")


def _check_token(endpoint: str, token: str | None, left: int | None, *, refused: bool) -> Check:
    if token is None:
        budget = "the budget is the one for anonymous requests"
        budget += "" if left is None else f", {left:,} are left, shared by everybody at this address"
        return Check("token", Outcome.OK, f"none, which is enough for public repos; {budget}")
    if not refused:
        from scanner.hub.refusals import translated

        from huggingface_hub import HfApi  # isort: skip

        try:
            return _told(token_scope(translated(lambda: HfApi(endpoint=endpoint).whoami(token=token))))
        except (HubTokenError, AccessDeniedError):
            refused = True
        except RateLimitedError as error:
            advice = "ask again later: the Hub allows this question less often than others"
            return Check("token", Outcome.WARNING, f"what it may do is not known: {error.message}", advice)
        except LorascopeError as error:
            return Check("token", Outcome.WARNING, f"what it may do is not known: {error.message}", "try again later")
    message = "the Hub does not accept it: every request that carries it is refused"
    return Check("token", Outcome.ERROR, message, f"unset HF_TOKEN or run `hf auth logout`, or {_READ_TOKEN}")


def _told(scope: TokenScope) -> Check:
    if scope.role == "read":
        return Check("token", Outcome.OK, f"{scope.who} may read")
    if scope.role == "write" or scope.writes:
        which = f" ({', '.join(scope.writes[:5])})" if scope.writes else ""
        message = f"{scope.who} may write{which}; a scanner needs to read only"
        return Check("token", Outcome.WARNING, message, _READ_TOKEN)
    if scope.role == "fineGrained":
        return Check("token", Outcome.OK, f"{scope.who} may read what a fine-grained token was given")
    return Check("token", Outcome.WARNING, f"{scope.who} is logged in, but the Hub does not say as what", _READ_TOKEN)


def token_scope(answer: Any) -> TokenScope:
    """Read a whoami-v2 answer. It may have any shape; what is not understood is `unknown`."""
    answer = _mapping(answer)
    access = _mapping(_mapping(answer.get("auth")).get("accessToken"))
    role = access.get("role")
    if role not in ("read", "write", "fineGrained"):
        role = "unknown"
    fine = _mapping(access.get("fineGrained"))
    permissions = list(_texts(fine.get("global")))
    scoped = fine.get("scoped")
    for scope in scoped if isinstance(scoped, list) else []:
        permissions += _texts(_mapping(scope).get("permissions"))
    name = answer.get("name")
    who = name[:100] if isinstance(name, str) and name else "somebody"
    return TokenScope(who, role, tuple(sorted({one for one in permissions if not one.endswith(".read")})))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    return [one[:80] for one in value[:200] if isinstance(one, str)] if isinstance(value, list) else []

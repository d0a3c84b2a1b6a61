"""What a check says, and how checks are run: side by side, each with a time limit, none able to raise or to hang."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

__all__ = ["Check", "Group", "Outcome", "one", "run_groups", "secrets_of", "worst"]

_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|API_KEY|AUTH_STRING|ACCESS_KEY|ACCESS_KEY_ID)$")
_SECRET_MIN_CHARS = 6
"""A shorter one would blot out ordinary words."""
_USERINFO = re.compile(r"(\w+://)[^/\s@]+@")


class Outcome(StrEnum):
    """How a check went."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Check:
    """One line of the answer."""

    name: str
    outcome: Outcome
    message: str
    advice: str = ""
    """What to do about it; empty when there is nothing to do."""


@dataclass(frozen=True)
class Group:
    """Checks that are made together, under one time limit."""

    names: tuple[str, ...]
    """Of the checks that `run` makes: what is told when it makes none."""
    limit_s: float
    run: Callable[[], Sequence[Check]]
    advice: str = "try again; if it stays so, please report it"
    """When there is no answer in time, or the check itself fails."""


def one(name: str, limit_s: float, check: Callable[[], Check], advice: str = Group.advice) -> Group:
    """A group of a single check."""
    return Group((name,), limit_s, lambda: [check()], advice)


def worst(checks: Iterable[Check]) -> Outcome:
    """Error before warning before ok; nothing but skipped checks is ok."""
    found = {check.outcome for check in checks}
    return next((outcome for outcome in (Outcome.ERROR, Outcome.WARNING) if outcome in found), Outcome.OK)


def secrets_of(environment: Mapping[str, str], more: Iterable[str | None] = ()) -> tuple[str, ...]:
    """Values that must not be shown, longest first: a secret may be the beginning of another."""
    named = [value for name, value in environment.items() if _SECRET_NAME.search(name)]
    values = dict.fromkeys(value.strip() for value in (*named, *more) if value)  # no set: its order is another each run
    return tuple(sorted((v for v in values if len(v) >= _SECRET_MIN_CHARS), key=len, reverse=True))


def run_groups(groups: Sequence[Group], secrets: Sequence[str] = ()) -> tuple[list[Check], bool]:
    """Run all groups side by side.

    Args:
        groups: in the order in which their checks are told.
        secrets: texts that are struck out, wherever a check got them from.

    Returns:
        The checks, and whether a group still runs. Such a group cannot be stopped, only left behind.
    """
    answers: list[list[Check] | None] = [None] * len(groups)

    def work(index: int, group: Group) -> None:
        try:
            answers[index] = list(group.run())
        except Exception as error:  # noqa: BLE001 - a check's surprise is an answer: something is wrong there
            answers[index] = _failed(group, f"the check itself failed: {type(error).__name__}: {error}")

    started = time.monotonic()
    threads = [threading.Thread(target=work, args=item, daemon=True) for item in enumerate(groups)]
    for thread in threads:
        thread.start()
    checks: list[Check] = []
    for thread, group, index in zip(threads, groups, range(len(groups)), strict=True):
        thread.join(max(0.0, started + group.limit_s - time.monotonic()))
        found = answers[index]
        checks += _failed(group, f"no answer within {group.limit_s:g} s") if found is None else found
    return [_without_secrets(check, secrets) for check in checks], any(thread.is_alive() for thread in threads)


def _failed(group: Group, message: str) -> list[Check]:
    first, *others = group.names
    return [
        Check(first, Outcome.ERROR, message, group.advice),
        *(Check(name, Outcome.SKIPPED, f"not looked at, because of {first}") for name in others),
    ]


def _without_secrets(check: Check, secrets: Sequence[str]) -> Check:
    def clean(text: str) -> str:
        text = _USERINFO.sub(r"\1", text)
        for secret in secrets:
            text = text.replace(secret, "***")
        return " ".join(text.split())[:400]

    return replace(check, message=clean(check.message), advice=clean(check.advice))

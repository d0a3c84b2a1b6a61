"""A script of changes: when the n-th request of some kind comes in, something happens to a repo.

So a test says exactly what happens between a client's listing and its download, without a race:

    hub.script.on("^/api/models$", lambda: actions.commit(folder, "ann/guard", {"README.md": "new"}), after=True)
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from scanner.errors import UsageError
from scanner.hub.server.faults import read_json

Action = Callable[[], None]
_OPTIONS: dict[str, type] = {"count": int, "method": str, "host": str, "after": bool}


@dataclass
class _Step:
    match: re.Pattern[str]
    method: str | None
    host: str
    left: int
    is_after: bool
    action: Action = field(repr=False)


class Script:
    """Steps that wait for their request. Safe to change while the hub answers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: list[_Step] = []

    def on(
        self,
        match: str,
        action: Action,
        *,
        count: int = 1,
        method: str | None = None,
        host: str = "any",
        after: bool = False,
    ) -> None:
        """Run `action` once, when the `count`-th matching request comes in: before it is answered, or `after`.

        `match` is a regular expression, searched in the decoded path. "After" is before the client has the whole
        answer, so what it asks next meets the change.
        """
        with self._lock:
            self._steps.append(_Step(re.compile(match), method and method.upper(), host, count, after, action))

    def clear(self) -> None:
        with self._lock:
            self._steps.clear()

    def pending(self) -> int:
        """Steps that have not happened yet."""
        with self._lock:
            return len(self._steps)

    def due(self, host: str, method: str, path: str) -> tuple[list[Action], list[Action]]:
        """What this request sets off: (before its answer, after it)."""
        before: list[Action] = []
        after: list[Action] = []
        with self._lock:
            for step in list(self._steps):
                is_met = step.host in ("any", host) and step.method in (None, method) and step.match.search(path)
                step.left -= bool(is_met)
                if step.left <= 0:
                    self._steps.remove(step)
                    (after if step.is_after else before).append(step.action)
        return before, after


def load_script(path: Path, root: Path, script: Script) -> None:
    """Add the `script` of a JSON file, if it has one (see `parse_script`)."""
    parse_script(script_of(read_json(path)), root, script)


def script_of(raw: Any) -> Any:
    """The script of a JSON text that may also hold faults."""
    return raw.get("script", []) if isinstance(raw, Mapping) else []


def parse_script(raw: Any, root: Path, script: Script) -> None:
    """Add steps written as JSON.

    `[{"on": "^/api/models$", "count": 1, "method": "GET", "host": "api", "after": true,
       "do": {"action": "commit", "repo": "ann/guard", "files": {"README.md": "new"}}}]`

    Raises:
        UsageError: a step is malformed; none was added then.
    """
    from scanner.hub.server.actions import ACTIONS

    made: list[tuple[str, Action, dict[str, Any]]] = []
    for step in raw if isinstance(raw, list) else [raw]:
        action = step.get("do") if isinstance(step, Mapping) else None
        if (
            not isinstance(action, Mapping)
            or action.get("action") not in ACTIONS
            or not isinstance(step.get("on"), str)
        ):
            raise UsageError(f"a step of a script must have `on`, and `do` with an action of: {', '.join(ACTIONS)}")
        if unknown := set(step) - {"on", "do", *_OPTIONS}:
            raise UsageError(f"a step of a script has no field {sorted(unknown)[0]!r}")
        function = ACTIONS[action["action"]]
        arguments: dict[str, Any] = {str(key): value for key, value in action.items() if key != "action"}
        options = {key: step[key] for key in _OPTIONS if key in step}
        if wrong := [key for key, value in options.items() if not isinstance(value, _OPTIONS[key])]:
            raise UsageError(f"{wrong[0]} of a script's step is not a {_OPTIONS[wrong[0]].__name__}")
        try:
            inspect.signature(function).bind(root, **arguments)
            re.compile(step["on"])
        except re.error as error:
            raise UsageError(f"{step['on']!r} is not a regular expression: {error}") from None
        except TypeError as error:
            raise UsageError(f"action {action['action']}: {error}") from None
        made.append((step["on"], partial(function, root, **arguments), options))
    for match, do, options in made:
        script.on(match, do, **options)

"""A script of changes: when the n-th request of some kind comes in, something happens to a repo.

So a test says exactly what happens between a client's listing and its download, without a race:

    hub.script.on("^/api/models$", lambda: actions.commit(folder, "ann/guard", {"README.md": "new"}), after=True)
"""

from __future__ import annotations

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
        """Run `action` once, when the `count`-th matching request comes in, before (or `after`) it is answered."""
        with self._lock:
            self._steps.append(_Step(re.compile(match), method, host, count, after, action))

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
    """Add the `script` of a JSON file, if it has one.

    `{"script": [{"on": "^/api/models$", "count": 1, "method": "GET", "after": true,
                  "do": {"action": "commit", "repo": "ann/guard", "files": {"README.md": "new"}}}]}`

    Raises:
        UsageError: a step is malformed.
    """
    from scanner.hub.server.actions import ACTIONS

    raw = read_json(path)
    steps = raw.get("script", []) if isinstance(raw, dict) else []
    for step in steps if isinstance(steps, list) else [steps]:
        action = step.get("do") if isinstance(step, Mapping) else None
        if (
            not isinstance(action, Mapping)
            or action.get("action") not in ACTIONS
            or not isinstance(step.get("on"), str)
        ):
            raise UsageError(f"a step of {path} must have `on` and `do` with an action of: {', '.join(ACTIONS)}")
        arguments: dict[str, Any] = {str(key): value for key, value in action.items() if key != "action"}
        options = {key: step[key] for key in ("count", "method", "host", "after") if key in step}
        try:
            script.on(step["on"], partial(ACTIONS[action["action"]], root, **arguments), **options)
        except re.error as error:
            raise UsageError(f"{step['on']!r} is not a regular expression: {error}") from None

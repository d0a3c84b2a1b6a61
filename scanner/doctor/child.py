"""Questions to libraries that are slow to load, may crash or hang: asked in a process that can be ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

__all__ = ["CHILD_LIMIT_S", "ask_child"]

CHILD_LIMIT_S = 90.0
"""Loading torch or Prefect's server takes seconds; on a busy machine with a cold disk, many."""
_MARK = "lorascope-answer:"


def ask_child(
    code: str, limit_s: float = CHILD_LIMIT_S, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run Python code that calls `answer(**facts)` once, and return the facts.

    Whatever goes wrong is a fact too, under `problem`: an exception, a crash, no answer in time.
    """
    script = (
        f"import json\ndef answer(**facts): print({_MARK!r} + json.dumps(facts), flush=True)\n"
        f"try:\n    exec({code!r}, {{'answer': answer}})\n"
        "except BaseException as error: answer(problem=f'{type(error).__name__}: {error}'[:300])\n"
    )
    # A file, not a pipe: a grandchild that outlives the child would keep a pipe open, and us waiting.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            env=None if environment is None else dict(environment),
            start_new_session=True,
        )
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return {"problem": f"no answer within {limit_s:g} s"}
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    for line in reversed(text.splitlines()):
        if line.startswith(_MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            return found
    return {"problem": f"the process ended with {process.returncode} before it could answer"}

"""The one task decorator.

Retries: decided by exception type alone (`scanner.errors.is_transient`), after the library's own retries of single
calls are used up; the delay comes from the error (a 429's window) and is bounded. Caching: off. Prefect's default key
hashes inputs, which here are paths of a workspace that a retry finds changed on purpose; what must happen once is the
store's business (deterministic keys, row ids).
Results: never persisted; a receipt is small and the truth is in the store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext

from scanner.errors import is_transient

__all__ = ["RETRIES", "attempts_left", "batch_task"]

P = ParamSpec("P")
R = TypeVar("R")

RETRIES = 2
RETRY_DELAYS_S = [2.0, 10.0]


def should_retry(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Prefect's question after a failure: is it worth another try?"""
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)


def batch_task(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """`@batch_task("name")`: a task run is a batch, never one adapter."""
    return task(
        name=name,
        retries=RETRIES,
        retry_delay_seconds=RETRY_DELAYS_S,
        retry_jitter_factor=0.25,
        retry_condition_fn=should_retry,
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=False,
    )


def attempts_left() -> bool:
    """Whether Prefect would run the current task again; False outside of a task run."""
    context = TaskRunContext.get()
    return context is not None and context.task_run.run_count <= RETRIES

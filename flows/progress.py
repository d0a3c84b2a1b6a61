"""The progress bar of a crawl in this process: on stderr, and only when that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tasks.progress import listening

__all__ = ["progress_bar"]


@contextmanager
def progress_bar() -> Iterator[None]:
    """Draw what the tasks report."""
    if not sys.stderr.isatty():
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bars = {}

        def draw(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=0)
            bar = bars[stage]
            progress.update(bar, advance=done, total=(progress.tasks[bar].total or 0) + total)

        with listening(draw):
            yield

"""What an inspection of a pickle finds: imported names, judged one by one, and named problems."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, TypeVar

from scanner.adapter.pickles_names import Level, level_of
from scanner.errors import LimitExceededError, MalformedFileError, SkipError

__all__ = ["Findings", "Kind", "PickleGlobal", "PickleProblem", "PickleReport", "clean"]

Kind = Literal["torch_zip", "torch_legacy", "zip", "tar", "pickle", "other"]
_Item = TypeVar("_Item")
MAX_LISTED = 1_000
"""Names of one level, or problems of one code, that a report lists: a flood of harmless ones hides no other."""


@dataclass(frozen=True)
class PickleGlobal:
    """A name that a stream imports. Importing alone already runs code of the module that is imported."""

    module: str
    name: str
    level: Level
    where: str


@dataclass(frozen=True)
class PickleProblem:
    """A broken rule. `code` is a stable snake_case word."""

    code: str
    message: str


@dataclass(frozen=True)
class PickleReport:
    """Everything found in one file. Nothing in it was run."""

    kind: Kind
    globals: tuple[PickleGlobal, ...]
    problems: tuple[PickleProblem, ...]

    @property
    def dangerous(self) -> tuple[PickleGlobal, ...]:
        """The names outside of both lists, in the order of the file."""
        return tuple(item for item in self.globals if item.level == "dangerous")


def clean(text: str, limit: int = 160) -> str:
    """A stranger's text for a message: short, printable, encodable."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return cut if cut.isprintable() else ascii(cut)[1:-1]


class Findings:
    """Collects while a file is read. The first error is kept, so that opening can raise what inspecting only names."""

    def __init__(self) -> None:
        self._globals: dict[PickleGlobal, None] = {}
        self._problems: dict[PickleProblem, None] = {}
        self._counts: Counter[str] = Counter()
        self._left_out = 0
        self.error: SkipError | None = None

    def add_global(self, module: str | None, name: str | None, where: str) -> Level:
        """Judge a name and list it. None stands for what only running the stream could tell."""
        level: Level = "dangerous" if module is None or name is None else level_of(module, name)
        shown = [clean(text) if text is not None else "<computed>" for text in (module, name)]
        self._list(self._globals, PickleGlobal(shown[0], shown[1], level, where), level)
        return level

    def add_problem(self, code: str, message: str) -> None:
        """Name a broken rule."""
        self._list(self._problems, PickleProblem(code, message), code)
        if self.error is None:
            self.error = MalformedFileError(message)

    def add_error(self, code: str, error: SkipError, where: str) -> None:
        """Name what stopped the reading of a part."""
        exceeded = isinstance(error, LimitExceededError)
        if self.error is None:
            self.error = error
        self.add_problem("limit_exceeded" if exceeded else code, f"{where}: {error.message}")

    def merge(self, other: Findings) -> None:
        """Take over everything another collector has."""
        self.error = self.error or other.error
        self._left_out += other._left_out
        for item in other._globals:
            self._list(self._globals, item, item.level)
        for problem in other._problems:
            self._list(self._problems, problem, problem.code)

    @property
    def imports(self) -> bool:
        """Whether any name was imported."""
        return bool(self._globals)

    def report(self, kind: Kind) -> PickleReport:
        """The frozen result."""
        problems = tuple(self._problems)
        if self._left_out:
            problems += (
                PickleProblem("too_many_findings", f"{self._left_out:,} more names or problems are not listed"),
            )
        return PickleReport(kind, tuple(self._globals), problems)

    def _list(self, found: dict[_Item, None], item: _Item, group: str) -> None:
        if item in found:
            return
        if self._counts[group] < MAX_LISTED:
            self._counts[group] += 1
            found[item] = None
        else:
            self._left_out += 1

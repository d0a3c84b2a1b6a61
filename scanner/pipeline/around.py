"""What lies around the adapters of one repo: card, templates, tokenizer, pickles, the Hub's own scan. Fetched once."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from scanner.adapter import is_pickle
from scanner.adapter.pickles_report import PickleReport
from scanner.errors import AccessDeniedError, LimitExceededError, SkipError, UnsupportedError
from scanner.hub.sources import RepoFiles
from scanner.pipeline.read import sha256_of
from scanner.rules import HubScan
from scanner.settings import Settings

if TYPE_CHECKING:
    from scanner.hub.client import HubClient
    from scanner.model import RepoRef

__all__ = ["Around"]

log = logging.getLogger(__name__)

_TEXTS = (
    "readme.md", "chat_template.jinja", "chat_template.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
)  # fmt: skip
"""By the last part of their names, letters' case aside."""
MAX_TEXTS = 32
"""Text files of one repo that are looked at, those at the top first."""
MAX_PICKLES = 16
"""Pickle files beside the weights that are looked into, the smallest names first."""
_SCANNED_BY_THE_HUB = (
    ".py", ".pyc", ".so", ".dll", ".exe", ".zip", ".tar", ".gz", ".7z", ".keras", ".h5", ".npz", ".gguf",
)  # fmt: skip


class Around:
    """One repo's surroundings. Everything is fetched when it is first asked for.

    Args:
        files: of the repo.
        names: of its files.
        settings: limits.
        client: the Hub that the repo is on; None for a folder.
        repo: as it is listed.
        weights: files that are looked at as adapters.
    """

    def __init__(
        self,
        files: RepoFiles,
        names: Iterable[str],
        settings: Settings,
        repo: RepoRef,
        client: HubClient | None = None,
        weights: frozenset[str] = frozenset(),
    ) -> None:
        self.repo, self.names = repo, tuple(names)
        self._weights = weights
        self._files, self._settings, self._client = files, settings, client
        self._names = sorted(self.names, key=lambda name: (name.count("/"), name))
        self._errors: list[SkipError] = []

    @cached_property
    def texts(self) -> dict[str, str]:
        """Small text files by path. What is no text is read as far as it is one.

        Raises:
            TransientError: the Hub did not answer, after all tries.
        """
        found: dict[str, str] = {}
        for name in self._names:
            last = PurePosixPath(name).name.lower()
            if len(found) < MAX_TEXTS and (last in _TEXTS or last.endswith(".jinja")):
                path = self._fetch(name, self._settings.max_text_bytes, is_small=True)
                if path is not None:
                    found[name] = path.read_text(encoding="utf-8", errors="replace")
        return found

    def tokenizer(self, name: str, unless_sha256: str | None) -> str | None:
        """The repo's tokenizer.json, None where it has none, cannot be had, or has that checksum."""
        if name not in self.names:
            return None
        if unless_sha256 and not self.repo.is_folder and self._files.sha256(name) == unless_sha256:
            return None
        path = self._fetch(name, self._settings.max_tokenizer_bytes)
        if path is None or (unless_sha256 and sha256_of(path) == unless_sha256):
            return None
        return path.read_text(encoding="utf-8", errors="replace")

    @cached_property
    def pickles(self) -> dict[str, PickleReport]:
        """Reports of pickle files by path. Those that are too large are left out."""
        reports: dict[str, PickleReport] = {}
        for name in [n for n in self._names if is_pickle(n) and n not in self._weights][:MAX_PICKLES]:
            from scanner.adapter.pickles import inspect_pickle

            try:
                path = self._files.fetch(name, self._settings.max_pickle_bytes)
                reports[name] = inspect_pickle(path)
            except SkipError as error:  # LS002 names what was not looked into
                log.info("%s was not looked into: %s", name, error.message)
        return reports

    @cached_property
    def hub_scan(self) -> HubScan | None:
        """The Hub's own verdict, asked for where the repo holds something that its scanners can say something of."""
        if self._client is None:
            return None
        if not any(name.lower().endswith(_SCANNED_BY_THE_HUB) or is_pickle(name) for name in self._names):
            return None
        try:
            return HubScan(*self._client.security(self.repo))
        except SkipError:
            return None

    @property
    def refusals(self) -> tuple[SkipError, ...]:
        """Why files of the repo were not looked at."""
        return tuple(self._errors)

    def _fetch(self, name: str, limit_bytes: int, *, is_small: bool = False) -> Path | None:
        try:
            return self._files.fetch(name, limit_bytes, is_small=is_small)
        except LimitExceededError as error:
            self._errors.append(error)
        except (UnsupportedError, AccessDeniedError) as error:
            log.info("%s was not looked at: %s", name, error.message)
        return None

"""A crawl's files on this machine: what one stage leaves for the next. Removed when the crawl ends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scanner.model import ProbeReport, RepoRef, ScanRecord, dump_json, load_json
from scanner.scratch import scratch_folder

__all__ = ["Workspace", "temporary_workspace"]


@dataclass(frozen=True)
class Workspace:
    """Paths and files below one folder."""

    root: Path

    @classmethod
    def at(cls, root: str) -> Workspace:
        """A workspace that another stage opened."""
        return cls(Path(root))

    def cache(self, shard: str) -> Path:
        """Hub cache of one shard's adapter downloads."""
        return self.root / f"{shard}.cache"

    def drop_cache(self, shard: str) -> None:
        """Remove a shard's downloads: a crawl must not need the disk for all of its adapters at once."""
        shutil.rmtree(self.cache(shard), ignore_errors=True)

    def write_repos(self, name: str, repos: list[RepoRef]) -> str:
        """Save repos; returns the path as text, small enough for a task argument."""
        path = self.root / f"{name}.repos.json"
        path.write_bytes(dump_json(list[RepoRef], repos))
        return str(path)

    @staticmethod
    def read_repos(path: str) -> list[RepoRef]:
        """The inverse of `write_repos`."""
        return load_json(list[RepoRef], Path(path).read_bytes())

    def write_records(self, name: str, records: list[ScanRecord]) -> str:
        """Save records."""
        path = self.root / f"{name}.records.json"
        path.write_bytes(dump_json(list[ScanRecord], records))
        return str(path)

    @staticmethod
    def read_records(path: str) -> list[ScanRecord]:
        """The inverse of `write_records`."""
        return load_json(list[ScanRecord], Path(path).read_bytes())

    def write_report(self, adapter_id: str, report: ProbeReport) -> None:
        """Save one adapter's probe as soon as it is done, so that a retry does not repeat it."""
        folder = self.root / "reports"
        folder.mkdir(exist_ok=True)
        (folder / f"{adapter_id}.json").write_bytes(dump_json(ProbeReport, report))

    def read_report(self, adapter_id: str) -> ProbeReport | None:
        """A saved probe."""
        path = self.root / "reports" / f"{adapter_id}.json"
        return load_json(ProbeReport, path.read_bytes()) if path.exists() else None


@contextmanager
def temporary_workspace() -> Iterator[Workspace]:
    """A workspace that is gone afterwards: features are kept, files are not."""
    with scratch_folder("work") as root:
        yield Workspace(root)

"""A crawl's files on this machine: what one stage leaves for the next. Removed when the crawl ends."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from scanner.model import Outcome, ProbeReport, RepoEvent, RepoRef, ScanRecord, SearchReport, dump_json, load_json
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

    @property
    def bases(self) -> Path:
        """What became of each base model, for all shards."""
        return self.root / "bases"

    @property
    def base_names(self) -> Path:
        """Where the names of base models lead, for all shards."""
        return self.root / "base-names"

    @property
    def content_index(self) -> Path:
        """Checksums of what the store has measured before this crawl."""
        return self.root / "contents.npy"

    def downloads(self, shard: str, batch: str = "again") -> Path:
        """Adapter files of one batch of a shard, named by their content. A folder each: batches run side by side."""
        return self.root / f"{shard}.downloads" / batch

    def drop_downloads(self, shard: str) -> None:
        """Remove a shard's downloads: a crawl must not need the disk for all of its adapters at once."""
        shutil.rmtree(self.root / f"{shard}.downloads", ignore_errors=True)

    def write_scanned(self, record: ScanRecord) -> None:
        """Remember a measured content for the rest of the crawl."""
        info = record.info
        if record.outcome == Outcome.PASS and info.content_sha256:
            folder = self.root / "contents"
            folder.mkdir(exist_ok=True)
            path = folder / f"{info.content_sha256}-{info.config_sha256 or ''}.json"
            part = path.with_suffix(f".{threading.get_ident()}")
            part.write_bytes(dump_json(ScanRecord, replace(record, probe=None, search=None)))
            part.replace(path)

    def read_scanned(self, content_sha256: str, config_sha256: str) -> ScanRecord | None:
        """A content that this crawl has measured already."""
        path = self.root / "contents" / f"{content_sha256}-{config_sha256}.json"
        return load_json(ScanRecord, path.read_bytes()) if path.exists() else None

    def write_events(self, events: Sequence[RepoEvent]) -> str:
        """Save what a poll noticed."""
        path = self.root / "events.json"
        path.write_bytes(dump_json(list[RepoEvent], list(events)))
        return str(path)

    @staticmethod
    def read_events(path: str) -> list[RepoEvent]:
        """The inverse of `write_events`."""
        return load_json(list[RepoEvent], Path(path).read_bytes())

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

    def write_search(self, adapter_id: str, report: SearchReport) -> None:
        """Save one adapter's trigger search as soon as it is done."""
        folder = self.root / "searches"
        folder.mkdir(exist_ok=True)
        (folder / f"{adapter_id}.json").write_bytes(dump_json(SearchReport, report))

    def read_search(self, adapter_id: str) -> SearchReport | None:
        """A saved trigger search."""
        path = self.root / "searches" / f"{adapter_id}.json"
        return load_json(SearchReport, path.read_bytes()) if path.exists() else None


@contextmanager
def temporary_workspace() -> Iterator[Workspace]:
    """A workspace that is gone afterwards: features are kept, files are not."""
    with scratch_folder("work") as root:
        yield Workspace(root)

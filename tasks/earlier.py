"""Scans and probes of the same content: of this crawl, from its workspace, and of earlier ones, from the store."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from scanner.model import ProbeReport, ScanRecord, SearchReport
from scanner.store import ContentIndex, Database, find_probe, find_scanned, find_search, open_database, open_root
from tasks.workspace import Workspace

__all__ = ["EarlierScans"]


class EarlierScans:
    """The store is opened at the first question that it may have an answer to."""

    def __init__(self, workspace: Workspace, store: str, detectors: str) -> None:
        self._workspace, self._store, self._detectors = workspace, store, detectors
        self._index = ContentIndex(workspace.content_index)
        self._database: Database | None = None

    def __enter__(self) -> EarlierScans:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._database is not None:
            self._database.close()

    def find(self, content_sha256: str, config_sha256: str) -> ScanRecord | None:
        """A scan of the same weights under the same config by the same detectors."""
        found = self._workspace.read_scanned(content_sha256, config_sha256)
        if found is None and self._index.may_hold(content_sha256):
            found = find_scanned(self._open(), content_sha256, config_sha256, self._detectors)
        return found

    def probe_of(self, record: ScanRecord, battery_ids: Sequence[str]) -> ProbeReport | None:
        """A probe of this adapter by an earlier try of this task, or of the adapter that it is a copy of."""
        info = record.info
        for adapter_id in (info.adapter_id, info.copied_from):
            if adapter_id and (report := self._workspace.read_report(adapter_id)):
                return report
        if not (info.content_sha256 and self._index.may_hold(info.content_sha256)):
            return None
        stored = (find_probe(self._open(), one, battery_ids) for one in (info.copied_from, info.adapter_id) if one)
        return next((report for report in stored if report is not None), None)

    def search_of(self, record: ScanRecord, plan_id: str, battery_ids: Sequence[str]) -> SearchReport | None:
        """The same for its trigger search: by this plan, on the texts of one of these batteries."""
        info = record.info
        for adapter_id in (info.adapter_id, info.copied_from):
            if adapter_id and (report := self._workspace.read_search(adapter_id)):
                return report
        if not (info.content_sha256 and self._index.may_hold(info.content_sha256)):
            return None
        ids = (one for one in (info.copied_from, info.adapter_id) if one)
        stored = (find_search(self._open(), one, plan_id, battery_ids) for one in ids)
        return next((report for report in stored if report is not None), None)

    def owners(self, records: Sequence[ScanRecord]) -> set[str]:
        """Those of the records' owners that had adapters in the store before."""
        wanted = sorted({record.info.repo.owner for record in records if record.info.repo.owner})
        rows = self._open().rows(
            "SELECT DISTINCT owner FROM adapters WHERE owner IN (SELECT unnest(?::VARCHAR[]))", [wanted]
        )
        return {row["owner"] for row in rows}

    def _open(self) -> Database:
        if self._database is None:
            self._database = open_database(open_root(self._store))
        return self._database

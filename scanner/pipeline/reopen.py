"""A scanned adapter's weights once more, where its files still lie on this machine."""

from __future__ import annotations

from pathlib import Path

from scanner.adapter import AdapterView, layout_plugins, open_weights, parse_config, read_json_object, view_adapter
from scanner.model import ScanRecord
from scanner.settings import Settings

__all__ = ["reopen_adapter"]


def reopen_adapter(record: ScanRecord, settings: Settings) -> AdapterView | None:
    """The view of a record's files; None where they are not here any more.

    Raises:
        LorascopeError: they changed since they were scanned.
    """
    if record.local_path is None:
        return None
    config = None
    if record.config_path:
        config = parse_config(read_json_object(Path(record.config_path), settings.max_config_bytes))
    paths = [Path(path) for path in (record.local_path, *record.more_local_paths)]
    return view_adapter(open_weights(paths, record.info.adapter_path), config, settings.max_rank, layout_plugins())

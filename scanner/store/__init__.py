"""The append-only Parquet store and its SQL views."""

from scanner.store.bases import base_rows, remembered_bases
from scanner.store.check import GRACE_S, Leftover, StoreCheck, check_store, remove_leftovers
from scanner.store.contents import ContentIndex, find_probe, find_scanned, write_content_index
from scanner.store.crawls import CrawlMemory, event_rows, last_watermark
from scanner.store.files import StoreRoot, open_root
from scanner.store.rates import prefix_run
from scanner.store.schema import SCHEMA_VERSION, TABLES
from scanner.store.searches import find_search, newest_search
from scanner.store.views import Database, open_database
from scanner.store.write import Row, append_shard, as_stored, row_id_of, shard_id_of, utc_now

__all__ = [
    "GRACE_S",
    "SCHEMA_VERSION",
    "TABLES",
    "ContentIndex",
    "CrawlMemory",
    "Database",
    "Leftover",
    "Row",
    "StoreCheck",
    "StoreRoot",
    "append_shard",
    "as_stored",
    "base_rows",
    "check_store",
    "event_rows",
    "find_probe",
    "find_scanned",
    "find_search",
    "last_watermark",
    "newest_search",
    "open_database",
    "open_root",
    "prefix_run",
    "remembered_bases",
    "remove_leftovers",
    "row_id_of",
    "shard_id_of",
    "utc_now",
    "write_content_index",
]

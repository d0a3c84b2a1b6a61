"""The append-only Parquet store and its SQL views."""

from scanner.store.crawls import known_commits, last_watermark, oldest_unfinished
from scanner.store.files import StoreRoot, open_root
from scanner.store.schema import SCHEMA_VERSION, TABLES
from scanner.store.views import Database, open_database
from scanner.store.write import Row, append_shard, row_id_of, shard_id_of, utc_now

__all__ = [
    "SCHEMA_VERSION",
    "TABLES",
    "Database",
    "Row",
    "StoreRoot",
    "append_shard",
    "known_commits",
    "last_watermark",
    "oldest_unfinished",
    "open_database",
    "open_root",
    "row_id_of",
    "shard_id_of",
    "utc_now",
]

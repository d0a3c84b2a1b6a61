"""Where the store's files lie and how one is written.

A store is a folder or an S3 prefix with one folder per table:

    <root>/<table>/scan_date=YYYY-MM-DD/<shard>.parquet

Many writers share it without a coordinator, because names follow from content: a retry writes the same key.
On disk a file is written beside its place as `.tmp`, fsynced and renamed, so that no reader meets half a file; on
S3 one PUT does the same. Scope: readers see whole files; which shards are complete is the commit marker's job
(`scanner.store.views`). A crash may leave a `.tmp` file behind, which no reader opens.
"""

from __future__ import annotations

import fcntl
import io
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from scanner.errors import StoreError

__all__ = ["StoreRoot", "open_root"]

LOCK_WAIT_S = 900
"""Longer than the judgement of a large store takes."""


@dataclass(frozen=True)
class StoreRoot:
    """An opened store location."""

    uri: str
    filesystem: pafs.FileSystem
    path: str

    @property
    def is_local(self) -> bool:
        """Whether this is a folder of this machine."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def list_parquet(self, table: str) -> list[str]:
        """Paths of all finished files of one table, sorted; [] when there is none.

        Raises:
            StoreError: the location cannot be listed.
        """
        selector = pafs.FileSelector(f"{self.path}/{table}", recursive=True, allow_not_found=True)
        try:
            infos = self.filesystem.get_file_info(selector)
        except OSError as error:
            raise StoreError(f"cannot list the store at {self.uri}: {error}") from error
        return sorted(
            info.path
            for info in infos
            if info.type == pafs.FileType.File and info.path.endswith(".parquet") and not info.base_name.startswith(".")
        )

    def has_newer(self, table: str, prefix: str, since: datetime) -> bool:
        """Whether a file of this name's beginning was written after `since`.

        Raises:
            StoreError: the location cannot be listed.
        """
        paths = [path for path in self.list_parquet(table) if PurePosixPath(path).name.startswith(prefix)]
        return any(info.mtime and info.mtime > since for info in self.filesystem.get_file_info(paths))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One process of this machine at a time: for what must be looked up and then written, once.

        The kernel frees the lock of a process that dies. On S3 there is no lock: there the views alone make sure that
        no row shows twice.
        """
        if not self.is_local:
            yield
            return
        try:
            lock = os.open(Path(self.path) / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StoreError(f"cannot write to the store at {self.uri}: {error}") from error
        try:
            self._take(lock)
            yield
        finally:
            os.close(lock)

    def _take(self, lock: int) -> None:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"another process holds the store at {self.uri} for over {LOCK_WAIT_S} s"
                    ) from None
                time.sleep(0.05)
            except OSError as error:  # a file system without locks
                raise StoreError(f"cannot lock the store at {self.uri}: {error}") from error

    def write(self, relative: str, table: pa.Table) -> None:
        """Write one Parquet file whole or not at all.

        Raises:
            StoreError: no space, no permission, no such bucket.
        """
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        data = sink.getvalue()
        try:
            if self.is_local:
                _write_atomically(Path(self.path) / relative, data)
            else:
                with self.filesystem.open_output_stream(f"{self.path}/{relative}") as stream:
                    stream.write(data)
        except OSError as error:
            raise StoreError(f"cannot write to the store at {self.uri}: {error}") from error


def _write_atomically(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def open_root(uri: str, *, create: bool = True) -> StoreRoot:
    """Open a folder (made when missing and `create`) or an `s3://bucket/prefix`.

    S3 takes its credentials and region from the standard AWS variables and its endpoint from `AWS_ENDPOINT_URL`.

    Raises:
        StoreError: the URI has an unknown scheme or the folder cannot be made.
    """
    try:
        if uri.startswith("s3://"):
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            options: dict[str, str] = {}
            if endpoint:
                scheme, _, host = endpoint.partition("://")
                options = {"scheme": scheme, "endpoint_override": host.rstrip("/")}
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            if region:
                options["region"] = region
            return StoreRoot(uri, pafs.S3FileSystem(**options), uri.removeprefix("s3://").rstrip("/"))
        if "://" in uri and not uri.startswith("file://"):
            raise StoreError(f"the store URI {uri!r} is neither a folder nor s3://BUCKET/PREFIX")
        folder = Path(uri.removeprefix("file://")).expanduser().absolute()
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        return StoreRoot(uri, pafs.LocalFileSystem(), str(folder))
    except OSError as error:
        raise StoreError(f"cannot open the store at {uri}: {error}") from error

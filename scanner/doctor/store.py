"""The store: can a file really be written there, read again and removed."""

from __future__ import annotations

import uuid
from contextlib import suppress

from scanner.doctor.check import Check, Outcome
from scanner.errors import StoreError

__all__ = ["check_store_writable"]

_CONTENT = b"lorascope doctor was here"


def check_store_writable(uri: str) -> Check:
    """Write, read and remove one small file. The folder is made where it is missing, as a scan would make it."""
    from scanner.store.files import open_root

    advice = "check the folder's owner and free space, or name another store with --store or LORASCOPE_STORE"
    if uri.startswith("s3://"):
        advice = (
            "check that the bucket exists and AWS_ENDPOINT_URL, AWS_REGION and the AWS credentials; "
            "lorascope does not make buckets"
        )
    try:
        root = open_root(uri)
    except StoreError as error:
        return Check("store", Outcome.ERROR, error.message, advice)
    # Not below a table's folder: no reader and no `store check` ever meets it.
    path = f"{root.path}/.lorascope-doctor-{uuid.uuid4().hex}.tmp"
    try:
        with root.filesystem.open_output_stream(path) as stream:
            stream.write(_CONTENT)
        with root.filesystem.open_input_stream(path) as stream:
            found = stream.read()
        root.filesystem.delete_file(path)
    except OSError as error:
        with suppress(OSError):
            root.filesystem.delete_file(path)
        return Check("store", Outcome.ERROR, f"cannot write, read and remove a file in {uri}: {error}", advice)
    if found != _CONTENT:
        return Check("store", Outcome.ERROR, f"{uri} gave back other bytes than were written", advice)
    return Check("store", Outcome.OK, f"{uri} can be written")

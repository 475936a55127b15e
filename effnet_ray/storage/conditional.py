"""Writes that are safe against other writers: create-only, and compare-and-swap by ETag.

S3 offers both as preconditions of a PUT (`If-None-Match: *`, `If-Match`); on a disk they are
link() and a lock. Some S3 servers ignore preconditions without an error, so `missing_guarantee`
tests the server.
"""

import uuid
from functools import lru_cache

from effnet_ray import storage
from effnet_ray.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    StorageError,
    UnsupportedError,
)
from effnet_ray.storage.backend import Versioned

PROBE_PREFIX = ".probe-"
"""Names of `probe_uri` start with this."""
ATTEMPTS = 3
"""Tests of a server before it counts as unsafe: garbage collection may delete a test's key while
it runs. Chosen, not measured."""
UNSUPPORTED = "does not support If-Match"


def probe_uri(uri: str) -> str:
    """A new URI below `uri` for what tests the storage and is deleted afterwards."""
    return storage.join(uri, f"{PROBE_PREFIX}{uuid.uuid4().hex}")


def read(uri: str) -> Versioned | None:
    """The record with its ETag; None if it does not exist. Raises StorageError."""
    try:
        return storage.backend_of(uri).read_versioned(uri, storage.RECORD_BYTES)
    except NotFoundError:
        return None


def create(uri: str, data: bytes) -> None:
    """Write a new object. Raises AlreadyExistsError if it exists."""
    storage.backend_of(uri).create(uri, data)


def swap(uri: str, data: bytes, etag: str) -> None:
    """Replace the object if it still has the ETag; no two writers may write the same `data`.

    Raises ConflictError if the object was changed or deleted since it was read.
    """
    try:
        storage.backend_of(uri).swap(uri, data, etag)
    except UnsupportedError as error:
        if PROBE_PREFIX in uri:
            raise
        # `require_conditional_writes` lets only a single writer get here.
        current = read(uri)
        if current is None or current.etag != etag:
            raise ConflictError(
                f"{uri} was changed by another writer: run the same command again"
            ) from error
        storage.write_bytes(uri, data)


def require_conditional_writes(uri: str, *, single_writer: bool) -> None:
    """Raise StorageError if two concurrent writers could overwrite each other at the URI."""
    if single_writer:
        return
    problem = missing_guarantee(uri)
    if problem:
        raise StorageError(
            f"{uri} does not support safe concurrent publishing (its server {problem}): use a "
            "server that supports If-None-Match and If-Match, or, if only one job publishes at a "
            "time, pass --single-writer (or set EFFNET_SINGLE_WRITER=1)"
        )


@lru_cache(maxsize=64)
def missing_guarantee(uri: str) -> str:
    """What the storage fails to guarantee, in words; empty if conditional writes are safe.

    Tested once per process, on keys that are deleted afterwards. Raises StorageError if the URI
    cannot be written.
    """
    folder = probe_uri(uri)
    try:
        for attempt in range(ATTEMPTS):
            problem = _test_preconditions(storage.join(folder, f"key-{attempt}"))
            if problem in ("", UNSUPPORTED):
                break
        return problem
    finally:
        storage.delete(folder)


def _test_preconditions(key: str) -> str:
    create(key, b"first")
    try:
        create(key, b"second")
        return "ignores If-None-Match"
    except AlreadyExistsError:
        pass
    created = read(key)
    if created is None or created.data != b"first":
        return "does not return the bytes that were written"
    try:
        swap(key, b"third", created.etag)
        swap(key, b"fourth", created.etag)
        return "ignores If-Match"
    except ConflictError:
        swapped = read(key)
        accepted = swapped is not None and swapped.data == b"third"
        return "" if accepted else "rejects a write with a valid If-Match"
    except UnsupportedError:
        return UNSUPPORTED

"""Writes that hold against other writers: create-only, and compare-and-swap by ETag.

S3 promises both by preconditions (`If-None-Match: *`, `If-Match`), a disk by link() and a lock.
Servers that ignore preconditions answer as if all were well, so `weakness` finds out.
"""

import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from effnet_ray import storage
from effnet_ray.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    StorageError,
    UnsupportedError,
)
from effnet_ray.storage import local

PROBE = ".probe-"
"""How folders begin that exist only for a moment."""


@dataclass(frozen=True, slots=True)
class Versioned:
    """An object as it was at one moment."""

    data: bytes
    tag: str
    """Its ETag; of a local file, its SHA-256."""


def read(uri: str) -> Versioned | None:
    """The record there, or None where nothing is. Raises StorageError."""
    try:
        return _read_s3(uri) if storage.is_remote(uri) else _read_local(uri)
    except NotFoundError:
        return None


def _read_local(uri: str) -> Versioned:
    data = storage.read_bytes(uri, most=storage.RECORD_BYTES)
    return Versioned(data, local.content_tag(data))


def _read_s3(uri: str) -> Versioned:
    async def get(client: Any) -> Versioned:
        answer = await client._call_s3("get_object", **_place(uri))
        try:
            storage.check_size(uri, int(answer["ContentLength"]), storage.RECORD_BYTES)
            return Versioned(await answer["Body"].read(), answer["ETag"])
        finally:
            answer["Body"].close()

    found: Versioned = storage.call_s3(uri, "read", get)
    return found


def create(uri: str, data: bytes) -> None:
    """Write what must not be there yet. Raises AlreadyExistsError where it is."""
    if not storage.is_remote(uri):
        return storage.write_bytes(uri, data, exclusive=True)
    try:
        _put(uri, data, IfNoneMatch="*")
    except ConflictError as error:
        if not _holds(uri, data):
            raise AlreadyExistsError(f"{uri} exists already") from error


def swap(uri: str, data: bytes, tag: str) -> None:
    """Replace what still has this tag; `data` is different from what any other may write.

    Raises ConflictError where the object was changed or deleted since it was read.
    """
    changed = ConflictError(f"{uri} was changed by another writer: run the same command again")
    if not storage.is_remote(uri):
        with storage.storage_errors(uri, "write"):
            return local.swap(Path(uri), data, tag)
    try:
        _put(uri, data, IfMatch=tag)
    except (ConflictError, NotFoundError) as error:
        if not _holds(uri, data):
            raise changed from error
    except UnsupportedError as error:
        if PROBE in uri:
            raise
        # `trust` lets only a single writer come here.
        seen = read(uri)
        if seen is None or seen.tag != tag:
            raise changed from error
        storage.write_bytes(uri, data)


def _put(uri: str, data: bytes, **precondition: str) -> None:
    storage.call_s3(
        uri, "write", "_call_s3", "put_object",
        **_place(uri), Body=data, **precondition, size=len(data),
    )  # fmt: skip


def _place(uri: str) -> dict[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": key}


def _holds(uri: str, data: bytes) -> bool:
    """Whether the object is `data`: an earlier try wrote it, and only its answer was lost."""
    found = read(uri)
    return found is not None and found.data == data


def require_conditional_writes(uri: str, what: str, *, single_writer: bool) -> None:
    """Raises StorageError where two writers at once could not be kept apart at the URI."""
    if single_writer:
        return
    found = missing_guarantee(uri)
    if found:
        raise StorageError(
            f"{what} at {uri} cannot be shared: its server {found}, so two publishers at once "
            "could overwrite each other's: use a server that honours If-None-Match and If-Match, "
            "or pass --single-writer (or EFFNET_SINGLE_WRITER=1) if never two write there at once"
        )


@lru_cache(maxsize=64)
def missing_guarantee(uri: str) -> str:
    """What the storage does not hold to; empty where it can be trusted. Asked once a process.

    Tried on a key of its own, which is removed. Raises StorageError where it cannot be written.
    """
    folder = storage.join(uri, f"{PROBE}{uuid.uuid4().hex}")
    try:
        return _try(storage.join(folder, "key"))
    finally:
        storage.delete(folder)


def _try(key: str) -> str:
    create(key, b"first")
    try:
        create(key, b"second")
        return "replaced an object by a create-only write"
    except AlreadyExistsError:
        pass
    seen = read(key)
    if seen is None or seen.data != b"first":
        return "does not give back what was written"
    try:
        swap(key, b"third", seen.tag)
        swap(key, b"fourth", seen.tag)
        return "replaced an object that had changed"
    except ConflictError:
        now = read(key)
        return "" if now and now.data == b"third" else "refuses a write that it should accept"
    except UnsupportedError:
        return "knows no compare-and-swap"

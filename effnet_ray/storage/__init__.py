"""Read, write, list and delete files and objects by URI: `s3://bucket/prefix` or a local path.

Every write is complete or absent. S3 settings come from the standard AWS environment. Errors of
the libraries below are raised as StorageError. The S3 libraries are imported when the first
`s3://` URI is used.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from effnet_ray.errors import AlreadyExistsError, StorageError
from effnet_ray.storage import local as _local
from effnet_ray.storage.backend import Backend, Entry
from effnet_ray.storage.uri import S3, absolute, bucket_and_key, is_remote, join, scheme

if TYPE_CHECKING:
    import pyarrow.fs as pafs

__all__ = [
    "RECORD_BYTES",
    "S3",
    "Entry",
    "absolute",
    "arrow_filesystem",
    "backend_of",
    "bucket_and_key",
    "delete",
    "download",
    "entries",
    "exists",
    "folders",
    "is_local_folder",
    "is_remote",
    "join",
    "local_entry",
    "read_bytes",
    "read_range",
    "read_with_retries",
    "scheme",
    "sizes",
    "upload",
    "write_bytes",
]

T = TypeVar("T")

RECORD_BYTES = 16_000_000
"""Size limit of a JSON record; a larger file is not a record and is not read."""


def backend_of(uri: str) -> Backend:
    """The module that implements the operations for the URI's scheme.

    Another scheme is another such module, a line here and one in `uri.SCHEMES`.
    """
    if scheme(uri) == S3:
        from effnet_ray.storage import s3  # imports s3fs and botocore

        return s3
    return _local


def read_bytes(uri: str, size: int | None = None, *, max_bytes: int | None = None) -> bytes:
    """The whole object; on S3, a known `size` saves a request for it.

    Raises StorageError; TooLargeError, without reading, if it has more than `max_bytes`.
    """
    return backend_of(uri).read(uri, size, max_bytes)


def read_range(uri: str, start: int, size: int) -> bytes:
    """`size` bytes of the object from `start` on. Raises StorageError."""
    data = backend_of(uri).read_range(uri, start, size)
    if len(data) != size:
        raise StorageError(
            f"cannot read {uri}: it ends before byte {start + size:,}: it was "
            "replaced or cut while it was read: try again, or restore it"
        )
    return data


def write_bytes(uri: str, data: bytes, *, exclusive: bool = False) -> None:
    """Write the whole object or nothing.

    With `exclusive`, raises AlreadyExistsError if the object exists. On S3 servers that ignore
    preconditions, this does not hold against a second writer at the same moment.
    """
    if not exclusive:
        return backend_of(uri).write(uri, data)
    if exists(uri):
        raise AlreadyExistsError(f"{uri} already exists")
    return backend_of(uri).create(uri, data)


def upload(path: Path, uri: str) -> None:
    """Copy a local file to the URI, completely or not at all."""
    backend_of(uri).upload(path, uri)


def download(uri: str, path: Path) -> None:
    """Copy the object to a local file."""
    path.write_bytes(read_bytes(uri))


def exists(uri: str) -> bool:
    """Whether an object or a folder exists."""
    return backend_of(uri).exists(uri)


def sizes(uri: str, *, follow_links: bool = False) -> dict[str, int]:
    """Every file below the URI: relative path → bytes, sorted by path; empty for no folder.

    `follow_links`: also what symbolic links to folders lead to, on disk; a link to nothing is an
    error. Raises StorageError if the bucket is missing or cannot be listed.
    """
    return {path: entry.size for path, entry in entries(uri, follow_links=follow_links).items()}


def entries(uri: str, *, hidden: bool = False, follow_links: bool = False) -> dict[str, Entry]:
    """Every file below the URI by its relative path, sorted; hidden files only on request."""
    uri = uri.rstrip("/")
    return {
        path: entry
        for path, entry in sorted(backend_of(uri).entries(uri, follow_links=follow_links).items())
        if hidden or not any(part.startswith(".") for part in path.split("/"))
    }


def local_entry(path: str) -> Entry | None:
    """The entry of a regular file on disk; None if there is none of this name.

    Raises StorageError where this user may not look.
    """
    return _local.entry(path)


def is_local_folder(path: str) -> bool:
    """Whether the path is a folder on disk. Raises StorageError where this user may not look."""
    return _local.is_folder(path)


def folders(uri: str) -> list[str]:
    """Names of the folders directly below the URI, sorted; empty if there are none."""
    return sorted(backend_of(uri).folders(uri))


def delete(uri: str) -> None:
    """Delete an object, or a folder with everything below it, if it exists."""
    backend_of(uri).delete(uri)


def delete_files(folder: str, names: Iterable[str]) -> None:
    """Delete files of a folder by name, many per request, those of them that exist."""
    uris = [join(folder, name) for name in names]
    if uris:
        backend_of(folder).delete_files(uris)


def arrow_filesystem(uri: str) -> "tuple[pafs.FileSystem, str]":
    """Arrow's file system for the URI, and the URI's path in it."""
    return backend_of(uri).arrow_filesystem(uri)


def read_with_retries(uri: str, operation: Callable[[], T], size: int = 0) -> T:
    """The result of `operation`, which reads the URI by itself, through `arrow_filesystem`.

    It is repeated while object storage fails with transient errors. `size`: the bytes it reads.
    Raises StorageError.
    """
    return backend_of(uri).read_with_retries(uri, operation, size)

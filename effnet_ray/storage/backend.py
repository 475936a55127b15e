"""The operations that each kind of storage implements: the disk (`local`) and S3 (`s3`).

A new kind is a module like these, a scheme in `uri.SCHEMES` and a case of `storage.backend_of`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from effnet_ray.errors import TooLargeError

if TYPE_CHECKING:
    import pyarrow.fs as pafs

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a listing."""

    size: int
    """Bytes."""
    modified: float
    """Time of the last write, seconds since 1970, by the storage's clock."""
    etag: str = ""
    """What identifies the content on S3."""


@dataclass(frozen=True, slots=True)
class Versioned:
    """An object's content and the ETag that identifies it."""

    data: bytes
    etag: str
    """For a local file: the SHA-256 of its content."""


class Backend(Protocol):
    """One kind of storage; every operation raises StorageError."""

    def errors(self, uri: str, verb: str) -> AbstractContextManager[None]:
        """Raise errors of the underlying library as StorageError: "cannot VERB URI: …"."""

    def read(self, uri: str, size: int | None, max_bytes: int | None) -> bytes:
        """The whole object; TooLargeError if it has more than `max_bytes`."""

    def read_range(self, uri: str, start: int, size: int) -> bytes:
        """Up to `size` bytes from `start` on."""

    def read_versioned(self, uri: str, max_bytes: int) -> Versioned:
        """The object with its ETag."""

    def write(self, uri: str, data: bytes) -> None:
        """Write the whole object."""

    def create(self, uri: str, data: bytes) -> None:
        """Write a new object; AlreadyExistsError if it exists."""

    def swap(self, uri: str, data: bytes, etag: str) -> None:
        """Replace the object if it still has the ETag; ConflictError if not."""

    def upload(self, path: Path, uri: str) -> None:
        """Copy a local file to the URI."""

    def exists(self, uri: str) -> bool:
        """Whether an object or a folder exists."""

    def entries(self, uri: str, *, follow_links: bool = False) -> dict[str, Entry]:
        """Every file below the URI by its relative path, hidden ones included.

        `follow_links`: also what symbolic links to folders lead to, on disk.
        """

    def folders(self, uri: str) -> list[str]:
        """Names of the folders directly below the URI."""

    def delete(self, uri: str) -> None:
        """Delete an object, or a folder with everything below it, if it exists."""

    def delete_files(self, uris: Sequence[str]) -> None:
        """Delete files of one folder, those of them that exist."""

    def arrow_filesystem(self, uri: str) -> "tuple[pafs.FileSystem, str]":
        """Arrow's file system, and the URI's path in it."""

    def read_with_retries(self, uri: str, operation: Callable[[], T], size: int) -> T:
        """The result of `operation`, which reads `size` bytes of the URI by itself."""


def check_size(uri: str, size: int, max_bytes: int | None) -> None:
    """Raise TooLargeError if the object has more bytes than it may have."""
    if max_bytes is not None and size > max_bytes:
        raise TooLargeError(
            f"{uri} is larger than expected ({size:,} > {max_bytes:,} bytes) and may be corrupt: "
            "restore it from a copy"
        )

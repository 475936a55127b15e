"""Files on a local disk: written completely or not at all, and durable after a power failure.

A write goes to a temporary file, which is synced and then renamed; then its folder is synced,
because the name is stored there. A killed writer leaves a hidden file that ends in `.partial`.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from effnet_ray.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    OutageError,
    StorageError,
    one_line,
    remedy,
)
from effnet_ray.storage.backend import Entry, Versioned, check_size
from effnet_ray.storage.local_listing import list_files

if TYPE_CHECKING:
    import pyarrow.fs as pafs

T = TypeVar("T")

PARTIAL = ".partial"
"""Suffix of temporary files."""
MAX_ATTEMPTS = 20
"""Attempts to write a file while another process keeps deleting its folder. Chosen, not
measured."""
COPY_BYTES = 2**20
"""Bytes that a copy holds at a time."""


@contextmanager
def errors(uri: str, verb: str) -> Iterator[None]:
    """Raise OSErrors as StorageError: "cannot VERB URI: …"."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"cannot {verb} {uri}: it does not exist: check the path") from error
    except PermissionError as error:
        raise StorageError(
            f"cannot {verb} {uri}: access denied ({error}): check the file's permissions"
        ) from error
    except IsADirectoryError as error:
        raise StorageError(f"cannot {verb} {uri}: it is a folder: choose a file") from error
    except (NotADirectoryError, FileExistsError) as error:
        paths = (path for path in (Path(uri), *Path(uri).parents) if path.is_file())
        file = next(paths, uri)
        raise StorageError(f"cannot {verb} {uri}: {file} is a file: choose a folder") from error
    except (TimeoutError, ConnectionError) as error:  # of a network file system
        raise OutageError(f"cannot {verb} {uri}: {one_line(error)}") from error
    except OSError as error:
        advice = f": {remedy(error)}" if remedy(error) else ""
        raise StorageError(f"cannot {verb} {uri}: {one_line(error)}{advice}") from error


def read(uri: str, size: int | None, max_bytes: int | None) -> bytes:
    """The whole file; `size` is for S3 alone."""
    with errors(uri, "read"), _opened(uri) as file:
        check_size(uri, os.fstat(file.fileno()).st_size, max_bytes)
        return file.read()


def read_range(uri: str, start: int, size: int) -> bytes:
    """Up to `size` bytes from `start` on."""
    with errors(uri, "read"), _opened(uri) as file:
        file.seek(start)
        return file.read(size)


def _opened(uri: str) -> BinaryIO:
    """A file, to read. Raises StorageError as `_refuse_special`."""
    _refuse_special(uri)
    return open(uri, "rb")


def _refuse_special(uri: str) -> None:
    """Raise StorageError for a pipe or a device: reading may never begin, or never end."""
    mode = os.stat(uri).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise StorageError(f"cannot read {uri}: it is a pipe or a device: choose a file")


def read_versioned(uri: str, max_bytes: int) -> Versioned:
    """The file with its ETag."""
    data = read(uri, None, max_bytes)
    return Versioned(data, content_etag(data))


def write(uri: str, data: bytes) -> None:
    """Write the whole file."""
    with errors(uri, "write"):
        _write_file(Path(uri), lambda file: file.write(data))


def create(uri: str, data: bytes) -> None:
    """Write a new file; AlreadyExistsError if it exists."""
    with errors(uri, "write"):
        _write_file(Path(uri), lambda file: file.write(data), exclusive=True)


def swap(uri: str, data: bytes, etag: str) -> None:
    """Replace the file if its content still has the ETag; ConflictError if not."""
    with errors(uri, "write"):
        path = Path(uri)
        with _locked(path):
            if _etag_of(path) != etag:
                raise ConflictError(
                    f"{path} was changed by another writer: run the same command again"
                )
            _write_file(path, lambda file: file.write(data))


def upload(path: Path, uri: str) -> None:
    """Copy a file."""

    def copy(file: BinaryIO) -> None:
        with path.open("rb") as original:
            shutil.copyfileobj(original, file, COPY_BYTES)

    with errors(uri, "write"):
        _write_file(Path(uri), copy)


def exists(uri: str) -> bool:
    """Whether a file or a folder exists."""
    with errors(uri, "look up"):
        return Path(uri).exists()


def entries(uri: str, *, follow_links: bool = False) -> dict[str, Entry]:
    """Every file below the folder by its relative path; files deleted meanwhile are left out.

    `follow_links`: also those in folders that are symbolic links, except for a link to a folder
    that the path to it goes through. Raises StorageError for a link to nothing, unless it is
    hidden: editors' locks are such links.
    """
    with errors(uri, "list"):
        return list_files(uri, follow_links=follow_links)


def entry(uri: str) -> Entry | None:
    """The entry of a regular file; None if there is none of this name."""
    with errors(uri, "look up"):
        try:
            status = os.stat(uri)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # of a name with a null byte
            return None
    return Entry(status.st_size, status.st_mtime) if stat.S_ISREG(status.st_mode) else None


def is_folder(uri: str) -> bool:
    """Whether there is a folder of this name."""
    with errors(uri, "look up"):
        return Path(uri).is_dir()


def folders(uri: str) -> list[str]:
    """Names of the folders directly below the URI."""
    with errors(uri, "list"):
        root = Path(uri)
        return [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []


def delete(uri: str) -> None:
    """Delete a file, or a folder with everything below it, if it exists."""
    with errors(uri, "delete"):
        path = Path(uri)
        try:
            path.unlink(missing_ok=True)
        except (IsADirectoryError, PermissionError):  # macOS has the second for folders
            if not path.is_dir():
                raise
            shutil.rmtree(path, onerror=_raise_unless_shared)


def _raise_unless_shared(function: Any, path: str, error: Any) -> None:
    """Ignore what another process deletes at the same time, and leave what it writes there."""
    if error[1].errno not in (errno.ENOENT, errno.ENOTEMPTY):
        raise error[1]


def delete_files(uris: Sequence[str]) -> None:
    """Delete files of one folder, those of them that exist."""
    for uri in uris:
        with errors(uri, "delete"):
            Path(uri).unlink(missing_ok=True)


def arrow_filesystem(uri: str) -> "tuple[pafs.FileSystem, str]":
    """Arrow's file system, and the path in it."""
    import pyarrow.fs as pafs  # only here: not every job reads Parquet

    with suppress(NotFoundError), errors(uri, "read"):
        _refuse_special(uri)
    return pafs.LocalFileSystem(), uri


def read_with_retries(uri: str, operation: Callable[[], T], size: int) -> T:
    """The result of `operation`, which reads the file by itself; a disk is read once."""
    with errors(uri, "read"):
        return operation()


def content_etag(data: bytes) -> str:
    """The ETag of a file with this content: its SHA-256."""
    return hashlib.sha256(data).hexdigest()


def _etag_of(path: Path) -> str:
    try:
        return content_etag(read(str(path), None, None))
    except NotFoundError:
        return ""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file's lock; a process that dies releases it.

    The lock file is never deleted: two processes could then lock two files of the same name.
    """
    _make_folder(path.parent)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_file(
    path: Path, fill: Callable[[BinaryIO], object], *, exclusive: bool = False
) -> None:
    """Write a file; repeated if another process deletes its folder meanwhile."""
    for attempt in range(MAX_ATTEMPTS):
        try:
            _make_folder(path.parent)
            return _write_once(path, fill, exclusive)
        except FileNotFoundError:
            if attempt == MAX_ATTEMPTS - 1:
                raise


def _write_once(path: Path, fill: Callable[[BinaryIO], object], exclusive: bool) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        if exclusive:
            _link(name, path)
            os.unlink(name)
        else:
            os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _link(source: str, path: Path) -> None:
    """Give the file its name; unlike os.replace, this fails if the name exists."""
    try:
        os.link(source, path)
    except FileExistsError as error:
        raise AlreadyExistsError(f"{path} already exists") from error


def _make_folder(folder: Path) -> None:
    """Make the folder and its parents, each synced into its own parent."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        try:
            folder.mkdir()
        except FileExistsError:
            if folder.is_file():
                raise
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Files on a disk: whole or absent whoever is killed, and there after a loss of power.

A write is a temporary file, synced, that gets its name at once; then its folder is synced, since a
name is the folder's. What a killed writer leaves is hidden and ends in `.partial`.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from effnet_ray.errors import AlreadyExistsError, ConflictError

PARTIAL = ".partial"
VANISHED = 20
"""Tries where somebody deletes the folder in the meantime."""


def write(path: Path, data: bytes, *, exclusive: bool = False) -> None:
    """Write the file; with `exclusive`, raise AlreadyExistsError where it exists."""
    _place(path, lambda file: file.write(data), exclusive)


def copy(source: Path, path: Path) -> None:
    """Copy a file."""

    def fill(file: BinaryIO) -> None:
        with source.open("rb") as original:
            shutil.copyfileobj(original, file, 2**20)

    _place(path, fill, False)


def content_tag(data: bytes) -> str:
    """What tells one content of a file from another, as an ETag does."""
    return hashlib.sha256(data).hexdigest()


def swap(path: Path, data: bytes, expected: str) -> None:
    """Replace the file if its content has the tag `expected`. Raises ConflictError."""
    with _locked(path):
        try:
            found = content_tag(path.read_bytes())
        except FileNotFoundError:
            found = ""
        if found != expected:
            raise ConflictError(f"{path} was changed by somebody else")
        write(path, data)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone with the file, among those who ask; a process that dies lets go.

    The lock's file stays: of two who delete and make one, both would be alone.
    """
    _make(path.parent)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _place(path: Path, fill: Callable[[BinaryIO], object], exclusive: bool) -> None:
    for left in reversed(range(VANISHED)):
        try:
            _make(path.parent)
            return _try(path, fill, exclusive)
        except FileNotFoundError:
            if not left:
                raise


def _try(path: Path, fill: Callable[[BinaryIO], object], exclusive: bool) -> None:
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
    try:
        os.link(source, path)  # fails where the name exists; os.replace would not
    except FileExistsError as error:
        raise AlreadyExistsError(f"{path} exists already") from error


def _make(folder: Path) -> None:
    """Make the folder and those above, each synced into its own."""
    if not folder.is_dir():
        _make(folder.parent)
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

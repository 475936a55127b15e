"""Temporary folders on this machine, for what libraries can only write to a path.

A folder is locked as long as its process lives, so that the next one may delete what a killed
process left: a checkpoint of B7 takes a gigabyte.
"""

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path

from safetensors import SafetensorError

from effnet_ray.errors import StorageError, one_line, remedy

OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How Rust's libraries, such as safetensors, end the text of an OSError."""
PREFIX = "effnet-"
LOCK = ".effnet-temporary"
"""A file in each of these folders, and in no other: locked by `flock`, in containers too."""
ABANDONED_S = 60.0
"""Age of an unlocked folder that may be deleted; a younger one may be about to be locked."""


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """A folder for temporary files that is deleted at the end; `name` is part of its own.

    Raises StorageError if there is no folder for it, or its disk is full.
    """
    try:
        with scratch_folder(name) as folder:
            yield folder
    except (OSError, SafetensorError) as error:
        code = OS_ERROR.search(str(error))
        number = error.errno if isinstance(error, OSError) else int(code[1]) if code else 0
        no_folder = "No usable temporary directory" in str(error)
        if number not in (ENOSPC, EDQUOT, EFBIG) and not no_folder:
            raise  # not of writing
        advice = "free some space, or set TMPDIR to a folder on another disk"
        if number == EFBIG:
            advice = remedy(OSError(number, ""))
        raise StorageError(
            f"cannot write temporary files ({one_line(error)}): {advice}"
        ) from error


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """As `temporary_folder`, for code of which an OSError may have other causes."""
    _delete_abandoned()
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{name}-") as parent:
        with Path(parent, LOCK).open("w") as lock:
            with suppress(OSError):  # a file system without locks: nobody deletes it either
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder = Path(parent, "files")
            folder.mkdir()
            yield folder


def _delete_abandoned() -> None:
    """Delete what killed processes of this user left."""
    before = time.time() - ABANDONED_S
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError), _open(path) as lock:  # another user's, or deleted meanwhile
            status = os.fstat(lock)
            if status.st_uid == os.geteuid() and status.st_mtime < before:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent, ignore_errors=True)


@contextmanager
def _open(path: Path) -> Iterator[int]:
    lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        yield lock
    finally:
        os.close(lock)

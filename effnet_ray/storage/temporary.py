"""Temporary folders on this machine, for what libraries can only write to a path."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path

from safetensors import SafetensorError

from effnet_ray.errors import StorageError, one_line, remedy

OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How Rust's libraries, such as safetensors, end the text of an OSError."""


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """A folder for temporary files that is deleted at the end; `name` is part of its own.

    Raises StorageError if there is no folder for it, or its disk is full.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f"effnet-{name}-") as folder:
            yield Path(folder)
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

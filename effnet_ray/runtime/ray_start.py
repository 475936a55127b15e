"""Calls `ray.init`, and says why Ray cannot start and what to do."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from errno import EDQUOT, ENOSPC
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray._private import services

from effnet_ray.errors import ClusterError, quote, remedy
from effnet_ray.runtime import signal_handlers

FREE_BYTES = 1_000_000
"""Free space without which Ray's folder is taken for full. Ray's processes fail there without an
error, and `ray.init` waits for them in vain. Chosen, not measured."""
OTHER_DISK = "free some space, or set RAY_TMPDIR to a folder on another disk"


def check_space() -> None:
    """Raise ClusterError if the disk of Ray's folder is full."""
    folder = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    if folder.is_dir() and shutil.disk_usage(folder).free < FREE_BYTES:
        raise ClusterError(f"Ray cannot start (the disk of {folder} is full): {OTHER_DISK}")


def init(**options: Any) -> None:
    """Call `ray.init` and restore the program's own SIGTERM handler afterwards.

    Raises ClusterError if Ray cannot start or be joined.

    Ray installs two handlers of its own. The second prints a C++ trace and aborts the process
    after 3 s, even while it still shuts down (2.60 `worker.py`; absl's `alarm_on_failure_secs`).
    A program without a handler keeps the first, which lets it clean up.
    """
    has_handler = callable(signal.getsignal(signal.SIGTERM))
    try:
        with (
            signal_handlers.restored(signal.SIGTERM) if has_handler else nullcontext(),
            _group_of_their_own(),
        ):
            _init_again_if_slow(**options)
    except Exception as error:  # Ray 2.60 raises many kinds, also Exception itself
        raise ClusterError(f"Ray cannot start ({quote(error)}): {_advice(error)}") from error


def _init_again_if_slow(**options: Any) -> None:
    """Call `ray.init`, once more if its processes were not ready in time.

    Ray waits 30 s for each of them, which a busy machine may need for their imports.
    """
    try:
        ray.init(**options)
    except Exception as error:
        if not _is_timeout(error):
            raise
        ray.shutdown()
        ray.init(**options)


@contextmanager
def _group_of_their_own() -> Iterator[None]:
    """Ray's processes that start here get process groups of their own.

    `timeout` and a shell's `kill %1` signal the group of the driver, which ends Ray in order. If
    the driver is killed, Ray's processes end by themselves (PR_SET_PDEATHSIG in ray 2.60).
    """
    popen = services.ConsolePopen
    services.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def _is_timeout(error: Exception) -> bool:
    """Whether Ray's processes were not ready in time; only the text tells."""
    return "timed out" in str(error).lower()


def _advice(error: Exception) -> str:
    """What to do about an error of `ray.init`."""
    if "AF_UNIX path length" in str(error):
        return "set RAY_TMPDIR to a folder with a shorter path, such as /tmp"
    if _is_timeout(error):
        return "close other programs that keep this machine busy, then run the same command again"
    if isinstance(error, PermissionError):
        return _permission_advice(str(error.filename))
    if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
        return OTHER_DISK
    if isinstance(error, OSError) and remedy(error):
        return remedy(error)
    return "run the same command again with --verbose to see Ray's own logs"


def _permission_advice(path: str) -> str:
    """What to do if Ray may not use a path."""
    token_folder = Path(os.path.expanduser("~"), ".ray")
    if token_folder.is_relative_to(path) or Path(path).is_relative_to(token_folder):
        return "set HOME to a folder that you can write to"
    if Path(path).is_relative_to(sys.prefix):
        return "install Python and its packages where this user may run them"
    return "set RAY_TMPDIR to a folder that you can write to"

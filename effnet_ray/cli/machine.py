"""What a job needs of its machine, and which of the machine's limits ended it."""

import codecs
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from effnet_ray.errors import InputError, MachineError, one_line, remedy

UTF8_ENV = "PYTHONUTF8"
MIN_WIDTH = 20


def use_utf8() -> None:
    """Start this process again in Python's UTF-8 mode if file names have another encoding.

    Arrow and Ray take names as UTF-8 alone, and so do our records. The output keeps the encoding
    of the terminal.
    """
    name = codecs.lookup(sys.getfilesystemencoding()).name
    if name == "utf-8" or os.environ.get(UTF8_ENV) == "1":
        return
    os.environ[UTF8_ENV] = "1"  # Ray's processes inherit it
    os.environ.setdefault("PYTHONIOENCODING", name)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def print_in_any_locale() -> None:
    """Print ? for characters that the terminal's encoding lacks, as with LANG=C, not fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not what a test has put in its place
            stream.reconfigure(errors="replace")


def keep_width() -> None:
    """Replace a COLUMNS below what a help text needs: Rich never ends with fewer than 8."""
    width = os.environ.get("COLUMNS", "")
    if width.isdecimal() and int(width) < MIN_WIDTH:
        os.environ["COLUMNS"] = str(MIN_WIDTH)


def check_folders() -> None:
    """Raise InputError if there is no home folder, which Ray needs, or no current folder."""
    if os.path.expanduser("~") == "~":
        raise InputError("this user has no home folder: set HOME to a folder that you can write")
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("the current folder was deleted: change to another one") from None


@contextmanager
def limits() -> Iterator[None]:
    """Raise MachineError for an OSError by which the machine says that it has no more.

    Storage has its own errors; this is for temporary files, caches, sockets and the output.
    """
    try:
        yield
    except OSError as error:
        advice = remedy(error)
        if not advice:
            raise
        raise MachineError(
            f"this machine has reached a limit ({one_line(error)}): {advice}"
        ) from error


def nobody_reads() -> bool:
    """Whether whoever read the output has gone, as in `… | head`."""
    streams = select.poll()
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None and not stream.closed:
            streams.register(stream, 0)
    return any(event & select.POLLERR for _, event in streams.poll(0))

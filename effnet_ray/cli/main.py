"""Runs a job: errors, exit codes, JSON result. Also the command `effnet-ray`.

The result is JSON on stdout; errors are sentences on stderr.
"""

import json
import logging
import math
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from effnet_ray import __version__
from effnet_ray.cli import machine
from effnet_ray.errors import EffnetRayError, InputError
from effnet_ray.redaction import is_secret, redact

Job = Callable[[Sequence[str]], dict[str, Any]]

JOBS = ("pack", "finetune", "tune", "evaluate", "predict", "serve", "models", "check", "data")
"""Each is a module of this package with a function NAME_job, and a script in jobs/."""

TO_STDOUT = {"-h", "--help", "--tyro-print-completion", "--tyro-write-completion"}
"""Flags whose answer is text on stdout."""
FLAG = re.compile(r"(--?[a-z][a-z0-9-]*)(?:=|$)")


def run() -> int:
    """Run `effnet-ray JOB FLAGS…`, which is the same as `python jobs/JOB.py FLAGS…`."""
    machine.use_utf8()
    machine.print_in_any_locale()
    machine.keep_width()
    arguments = sys.argv[1:]
    if arguments and arguments[0] in JOBS:
        name = arguments[0]
        # The name of the program in usage and errors.
        sys.argv = [f"effnet-ray {name}", *arguments[1:]]
        return main(load_job(name))
    sys.argv[0] = "effnet-ray"
    if arguments == ["--version"]:
        print(f"effnet-ray {__version__}")
        return 0
    return main(_no_job, arguments or ["--help"])


def _no_job(arguments: Sequence[str]) -> dict[str, Any]:
    """Print the help, or that there is no such job, and exit."""
    from effnet_ray.cli.all_jobs import parse_all

    unknown_job = not arguments[0].startswith("-")
    parse_all(arguments[:1] if unknown_job else arguments)
    raise SystemExit(2)


def load_job(name: str) -> Job:
    """The job of this name, which is imported when it runs: `main` then handles Ctrl-C."""

    def job(argv: Sequence[str]) -> dict[str, Any]:
        result: dict[str, Any] = getattr(import_module(f"effnet_ray.cli.{name}"), f"{name}_job")(
            argv
        )
        return result

    return job


def main(job: Job, argv: Sequence[str] | None = None) -> int:
    """Run a job and return its exit code. The last line of stdout is its result as JSON."""
    if argv is None:
        machine.use_utf8()
    machine.print_in_any_locale()
    machine.keep_width()
    _set_up_logging()
    sys.excepthook = _print_traceback
    # `ray job stop` and orchestrators send SIGTERM.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run_job(job, list(sys.argv[1:] if argv is None else argv))
    except EffnetRayError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not machine.nobody_reads():
            raise
        return 1


def _run_job(job: Job, arguments: list[str]) -> int:
    """Run a job, print its result and return its exit code."""
    # Ray prints warnings to stdout until it is shut down; our JSON must be the last line there.
    stdout = sys.stdout if TO_STDOUT & set(arguments) else sys.stderr
    _refuse_secrets(arguments)
    with machine.limits():
        if not TO_STDOUT & set(arguments):
            machine.check_folders()
        with redirect_stdout(stdout), _ray_session():
            result = job(arguments)
        print(json.dumps({name: _json(value) for name, value in result.items()}), flush=True)
    return 1 if result.get("ok") is False else 0


def _refuse_secrets(arguments: Sequence[str]) -> None:
    """Raise InputError for an argument that contains a secret; the message does not repeat it."""
    for before, word in zip(["", *arguments], arguments, strict=False):
        if not is_secret(word):
            continue
        flag = FLAG.match(word) or FLAG.fullmatch(before)
        what = f"the value of {flag[1]}" if flag else "an argument"
        raise InputError(
            f"{what} contains a password, token or signature, which everyone on this machine can "
            "read: remove it, and set it in the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, HF_TOKEN, MLFLOW_TRACKING_TOKEN)"
        )


class _RedactingFormatter(logging.Formatter):
    """Removes secrets from a library's warning."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an error that nobody expected, without secrets."""
    print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _set_up_logging() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_RedactingFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # The hub's client warns about each retry; our error message is enough. Matplotlib warns of a
    # home folder that cannot be written, where it would keep a list of fonts.
    for library in ("huggingface_hub", "matplotlib"):
        logging.getLogger(library).setLevel(logging.ERROR)


@contextmanager
def _ray_session() -> Iterator[None]:
    """Shut Ray down at the end if the job connected to it. Does not import Ray."""
    connected_before = _ray_connected()
    try:
        yield
    finally:
        if not connected_before and "ray" in sys.modules:
            sys.modules["ray"].shutdown()  # also what a failed `ray.init` started


def _ray_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Do what Ctrl-C does: Ray Train and Ray Tune install their own handlers for SIGINT."""
    handler = signal.getsignal(signal.SIGINT)
    # A shell's background jobs ignore SIGINT.
    (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)


def _json(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

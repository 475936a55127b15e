"""Every job's frame: JSON on stdout, sentences on stderr, an exit code."""

import json
import logging
import math
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

from effnet_ray.errors import EffnetRayError
from effnet_ray.runtime import session


def main(job: Callable[[Sequence[str]], dict[str, Any]], argv: Sequence[str] | None = None) -> int:
    """Run a job: JSON on stdout's last line, a sentence on stderr where it cannot be done."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # The hub's client warns about its own retries; our sentence says what it comes to.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # What `ray job stop` and orchestrators send.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Ray prints warnings to stdout, up to its end; there, our JSON is the last line.
    asks = {"-h", "--help"} & set(arguments)
    try:
        with redirect_stdout(sys.stdout if asks else sys.stderr), session.shutdown_if_started():
            answer = job(arguments)
    except EffnetRayError as error:
        print(f"{Path(sys.argv[0]).stem}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 130
    print(json.dumps({name: _json(value) for name, value in answer.items()}), flush=True)
    return 1 if answer.get("ok") is False else 0


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Do what Ctrl-C does: Ray Train and Ray Tune have handlers of their own for it."""
    heard = signal.getsignal(signal.SIGINT)
    # A shell's background jobs ignore it.
    (heard if callable(heard) else signal.default_int_handler)(signal.SIGINT, frame)


def _json(value: Any) -> Any:
    """JSON knows no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

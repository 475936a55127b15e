"""Keeps the program's signal handlers: Ray installs its own and leaves them installed."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def restored(number: signal.Signals) -> Iterator[None]:
    """Restore the handler of a signal after the context. Outside the main thread, do nothing."""
    handler = signal.getsignal(number)
    try:
        yield
    finally:
        # None: a handler that was not installed by Python.
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)

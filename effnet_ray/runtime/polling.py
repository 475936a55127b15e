"""Repeated calls beside the driver's own work. Imports no Ray."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def call_every(seconds: float, call: Callable[[], None], *, name: str) -> Iterator[None]:
    """Call a function in a thread of this name, `seconds` after its last call, until the end."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(seconds):
            call()

    thread = threading.Thread(target=loop, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()

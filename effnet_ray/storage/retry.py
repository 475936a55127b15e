"""Retries with a time limit, of storage requests and of calls to actors.

Clients of storage retry by themselves, each differently and each with gaps: pyarrow 26 gives up
at once on 429, s3fs 2026.9 waits three minutes for a stalled body, and neither ends a request
that only trickles. Their retries are turned off or down, and this module alone decides.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

T = TypeVar("T")

GIVE_UP_S = 35.0
"""After this time, in seconds, no new attempt starts, so a small request fails within a minute:
as long as people wait for a command. Chosen, not measured."""
ATTEMPT_S = 15.0
"""Time limit of an attempt, seconds, plus one second for each MIN_BYTES_PER_S bytes. Chosen,
not measured."""
MIN_BYTES_PER_S = 500_000
"""A transfer slower than this counts as stuck: a home connection of 4 Mbit/s passes."""

Attempt = Callable[[float], T]
"""Function of a time limit in seconds, which returns within it or raises TimeoutError."""


def with_retries(
    attempt: Attempt[T], is_transient: Callable[[BaseException], bool], size: int = 0
) -> T:
    """The result of `attempt`, repeated while it fails with transient errors.

    `size`: the bytes it transfers. Raises the error of the last attempt.
    """
    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_delay(GIVE_UP_S),
        wait=wait_random_exponential(multiplier=0.1, max=4),
        reraise=True,
    )
    result: T = retrying(attempt, ATTEMPT_S + size / MIN_BYTES_PER_S)
    return result


def with_timeout(read: Callable[[], T]) -> Attempt[T]:
    """An attempt of a call that cannot be cancelled: it runs in a thread, abandoned on timeout.

    For reads only: an abandoned write could still arrive, after a later one.
    """

    def attempt(seconds: float) -> T:
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(read())
            except BaseException as error:
                future.set_exception(error)

        # A daemon thread, so that an abandoned attempt does not keep the process alive.
        threading.Thread(target=run, name="storage", daemon=True).start()
        try:
            return future.result(seconds)
        except TimeoutError as error:
            if future.done():
                raise
            raise TimeoutError(f"no complete answer within {seconds:.0f} s") from error

    return attempt

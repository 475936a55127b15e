"""Trying again what object storage did not answer, within limits that do not multiply.

The clients below retry by themselves, each in its own way and each with gaps: pyarrow 26 gives up
at once on 429, s3fs 2026.9 waits three minutes for a stalled body, and neither ends a trickle.
They are turned down to almost nothing; this is the one layer that decides.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import aiohttp
from botocore.exceptions import (
    ClientError,
    ConnectionError as BotoConnectionError,
    HTTPClientError,
    IncompleteReadError,
)
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

T = TypeVar("T")

GIVE_UP_S = 35.0
"""No try begins later: with the last one's time a small request ends within a minute."""
TRY_S = 15.0
"""Time of one try…"""
SLOWEST = 500_000
"""…and a second more for so many bytes: who reads or writes slower is taken for stuck."""

TRANSIENT_CODES = {
    "RequestTimeout", "SlowDown", "OperationAborted", "ConditionalRequestConflict", "400",
}  # fmt: skip
"""400 is what a HEAD says of RequestTimeout: it has no body to name a code."""
NOT_IMPLEMENTED = 501
"""What a server says of preconditions that it does not know: it will not learn them."""
TRANSIENT_TEXTS = (
    "AWS Error NETWORK_CONNECTION", "AWS Error SLOW_DOWN", "AWS Error SERVICE_UNAVAILABLE",
    "AWS Error INTERNAL_FAILURE", "AWS Error REQUEST_TIMEOUT", "(HTTP status 5",
    "(HTTP status 429)", "(HTTP status 400)", "curlCode",
)  # fmt: skip
"""pyarrow has no types for what S3 answers, only texts."""


Attempt = Callable[[float], T]
"""Does its work within so many seconds, or raises TimeoutError."""


def with_retries(operation: Attempt[T], size: int = 0) -> T:
    """What `operation` returns, tried again while it fails for causes that pass.

    `size` is what it moves, bytes. Raises what the last try raised.
    """
    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_delay(GIVE_UP_S),
        wait=wait_random_exponential(multiplier=0.1, max=4),
        reraise=True,
    )
    found: T = retrying(operation, TRY_S + size / SLOWEST)
    return found


def with_timeout(read: Callable[[], T]) -> Attempt[T]:
    """A try of what cannot be cancelled: left to a thread of its own when its time is over.

    Only for reading: an abandoned write could still land, after a later one.
    """

    def within(seconds: float) -> T:
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(read())
            except BaseException as error:
                answer.set_exception(error)

        # A daemon: an abandoned try must not keep the process from ending.
        threading.Thread(target=run, name="storage", daemon=True).start()
        try:
            return answer.result(seconds)
        except TimeoutError as error:
            if answer.done():
                raise
            raise TimeoutError(f"no complete answer within {seconds:.0f} s") from error

    return within


def is_transient(error: BaseException) -> bool:
    """Whether the cause may pass by itself: time-outs, broken connections, 5xx, 429."""
    answer = error if isinstance(error, ClientError) else error.__cause__
    if isinstance(answer, ClientError):
        status = answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = answer.response.get("Error", {}).get("Code")
        busy = status >= 500 and status != NOT_IMPLEMENTED
        return busy or status == 429 or code in TRANSIENT_CODES
    kinds = (
        TimeoutError, ConnectionError, BotoConnectionError, HTTPClientError, IncompleteReadError,
    )  # fmt: skip
    if isinstance(error, (*kinds, aiohttp.ClientError)):
        return True
    return isinstance(error, OSError) and any(text in str(error) for text in TRANSIENT_TEXTS)

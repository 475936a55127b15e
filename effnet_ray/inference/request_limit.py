"""Limits on HTTP requests, in Ray Serve's proxies, before a replica receives them.

A request that is too large gets 413, one that does not arrive in time 408. One that finds the
queue or the memory for requests full, or that is not answered in time, gets 503 and when to try
again. A WebSocket is refused.

A proxy reads a request of any size before it forwards it, and has no option that limits the size.
It does load middleware that an environment variable names (ray 2.60 `serve/_private/http_util.py`,
`configure_http_middlewares`); proxies inherit the environment of Ray Serve's controller.
"""

import asyncio
import os

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from effnet_ray.inference import http_connections
from effnet_ray.inference.http_metrics import HttpMetrics

HOOK_ENV = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
MAX_BYTES_ENV, MAX_SECONDS_ENV = "EFFNET_REQUEST_BYTES", "EFFNET_REQUEST_SECONDS"
TIMEOUT_HEADER = b"x-request-timeout-seconds"
"""Ray Serve's header with a request's own timeout. It would also accept 0, for none."""
DISCONNECT_HEADER = b"x-request-disconnect-disabled"
"""Ray Serve's header of clients that may hang up, and whose request is computed anyway."""
UNAVAILABLE, TIMED_OUT = 503, 408
"""Ray Serve's status where the queue is full, and where the time is over."""
REASONS = {
    UNAVAILABLE: "too many images wait, or no replica is ready: try again later",
    TIMED_OUT: "the image waited too long and was given up: try again later",
}
RETRY_AFTER_S = b"1"
"""Seconds after which a client should try again: a full queue of 200 images takes some seconds on
a CPU. Chosen, not measured."""
MAX_BUFFERED_BYTES, MAX_BUFFERED_REQUESTS = 64_000_000, 8
"""Bytes that all requests of a proxy may hold together, or, if that is more, requests of the
largest size. Chosen, not measured."""
DRAIN_FACTOR = 10
"""A request larger than this many times the limit is aborted while the client still sends, so the
client sees no answer. Chosen, not measured."""


def environment(max_bytes: int, max_seconds: float) -> dict[str, str]:
    """Environment variables that give a proxy these limits of requests."""
    return {
        HOOK_ENV: f"{__name__}:middlewares",
        MAX_BYTES_ENV: str(max_bytes),
        MAX_SECONDS_ENV: str(max_seconds),
    }


def middlewares() -> list[Middleware]:
    """The middleware, the innermost first, as Ray Serve wraps it; called in each proxy."""
    max_bytes, max_seconds = int(os.environ[MAX_BYTES_ENV]), float(os.environ[MAX_SECONDS_ENV])
    http_connections.install(max_seconds)
    limit = Middleware(RequestLimit, max_bytes=max_bytes, max_seconds=max_seconds)
    return [limit, Middleware(HttpMetrics)]


class RequestLimit:
    """ASGI middleware that forwards complete requests, answers 413 to those too large, and tells
    those that are turned away when to come back."""

    def __init__(self, app: ASGIApp, max_bytes: int, max_seconds: float) -> None:
        self._app, self.max_bytes, self._max_seconds = app, max_bytes, max_seconds
        self.buffered = 0
        """Bytes of all requests that are received, wait or are computed."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI request."""
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close"})
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body = _Body(self)
        try:
            await self._handle(body, scope, receive, send)
        finally:
            body.release()

    async def _handle(self, body: "_Body", scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._max_seconds):
                request = await body.read(receive)
        except TimeoutError:
            error = {"error": f"the image did not arrive within {self._max_seconds:g} s"}
            headers = {"connection": "close"}
            return await JSONResponse(error, TIMED_OUT, headers)(scope, receive, send)
        if body.too_large:
            limit = f"{self.max_bytes / 1e6:g} MB"
            error = {"error": f"the request is larger than {limit}: send a smaller image"}
            return await JSONResponse(error, status_code=413)(scope, receive, send)
        if body.no_memory:
            return await _come_back(UNAVAILABLE)(scope, receive, send)
        unread = [request]

        async def receive_again() -> Message:
            return unread.pop() if unread else await receive()

        turned_away = False

        async def send_with_retry(message: Message) -> None:
            nonlocal turned_away
            if message["type"] == "http.response.start":
                status = UNAVAILABLE if _replica_died(message) else message["status"]
                turned_away = status in REASONS
                if turned_away:
                    await _come_back(status)(scope, receive, send)
            if not turned_away:  # Ray Serve's own text
                await send(message)

        await self._app(self._with_deadline(scope), receive_again, send_with_retry)

    def has_room(self, size: int) -> bool:
        """Whether this many bytes more may be held."""
        limit = max(MAX_BUFFERED_BYTES, MAX_BUFFERED_REQUESTS * self.max_bytes)
        return self.buffered + size <= limit

    def _with_deadline(self, scope: Scope) -> Scope:
        """The request, whose own timeout may be shorter than the server's, not longer."""
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name != DISCONNECT_HEADER
            and (name != TIMEOUT_HEADER or _is_shorter(value, self._max_seconds))
        ]
        return {**scope, "headers": headers}


def _replica_died(start: Message) -> bool:
    """Whether an answer is Ray Serve's about a replica that ended, not JSON of the replica.

    Its text is the exception's, with addresses and ids (ray 2.60 `serve/_private/http_util.py`).
    """
    headers = dict(start["headers"])
    return bool(start["status"] == 500) and b"json" not in headers.get(b"content-type", b"")


def _is_shorter(value: bytes, max_seconds: float) -> bool:
    try:
        return 0 < float(value) <= max_seconds
    except ValueError:
        return False


def _come_back(status: int) -> JSONResponse:
    """503 with the reason and the seconds until the next try."""
    headers = {"retry-after": RETRY_AFTER_S.decode()}
    return JSONResponse({"error": REASONS[status]}, status_code=UNAVAILABLE, headers=headers)


class _Body:
    """The body of a request, while it is received and until it is answered."""

    def __init__(self, limit: RequestLimit) -> None:
        self._limit = limit
        self._parts, self._size, self._held = list[bytes](), 0, 0
        self.too_large = self.no_memory = False

    async def read(self, receive: Receive) -> Message:
        """The whole request as one message, or the client's disconnect.

        A client reads the answer only after it has sent everything, so up to `DRAIN_FACTOR` times
        the limit is read and discarded.
        """
        while self._size <= DRAIN_FACTOR * self._limit.max_bytes:
            message = await receive()
            if message["type"] != "http.request":
                return message
            self._add(message.get("body", b""))
            if not message.get("more_body", False):
                break
        return {"type": "http.request", "body": b"".join(self._parts), "more_body": False}

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        self.too_large |= self._size > self._limit.max_bytes
        self.no_memory |= not self._limit.has_room(len(part))
        if self.too_large or self.no_memory:
            self.release()
            return
        self._parts.append(part)
        self._held += len(part)
        self._limit.buffered += len(part)

    def release(self) -> None:
        """Forget what has been read."""
        self._parts.clear()
        self._limit.buffered -= self._held
        self._held = 0

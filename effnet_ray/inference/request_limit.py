"""Limits on HTTP requests, in Ray Serve's proxies, before a replica receives them.

A request that is too large gets 413. One that finds the queue full gets Ray Serve's 503, to which
this module adds when to try again.

A proxy reads a request of any size before it forwards it, and has no option that limits the size.
It does load middleware that an environment variable names (ray 2.60 `serve/_private/http_util.py`,
`configure_http_middlewares`); proxies inherit the environment of Ray Serve's controller.
"""

import os

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOOK_ENV = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
MAX_BYTES_ENV = "EFFNET_REQUEST_BYTES"
UNAVAILABLE = 503
RETRY_AFTER_S = b"1"
"""Seconds after which a client should try again: a full queue of 200 images takes some seconds on
a CPU. Chosen, not measured."""
DRAIN_FACTOR = 10
"""A request larger than this many times the limit is aborted while the client still sends, so the
client sees no answer. Chosen, not measured."""


def environment(max_bytes: int) -> dict[str, str]:
    """Environment variables that make a proxy refuse requests of more than `max_bytes`."""
    return {HOOK_ENV: f"{__name__}:middlewares", MAX_BYTES_ENV: str(max_bytes)}


def middlewares() -> list[Middleware]:
    """The middleware; Ray Serve calls this in each proxy."""
    return [Middleware(RequestLimit, max_bytes=int(os.environ[MAX_BYTES_ENV]))]


class RequestLimit:
    """ASGI middleware that forwards complete requests, answers 413 to those too large, and tells
    those that are turned away when to come back."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request = await _read_request(receive, self._max_bytes)
        if request is None:
            limit = f"{self._max_bytes / 1e6:g} MB"
            body = {"error": f"the request is larger than {limit}: send a smaller image"}
            return await JSONResponse(body, status_code=413)(scope, receive, send)
        unread = [request]

        async def receive_again() -> Message:
            return unread.pop() if unread else await receive()

        async def send_with_retry(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == UNAVAILABLE:
                headers = [*message.get("headers", ()), (b"retry-after", RETRY_AFTER_S)]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive_again, send_with_retry)


async def _read_request(receive: Receive, max_bytes: int) -> Message | None:
    """The whole request as one message, or the client's disconnect; None if it is too large.

    A client reads the answer only after it has sent everything, so up to `DRAIN_FACTOR` times the
    limit is read and discarded.
    """
    parts, size = list[bytes](), 0
    while size <= DRAIN_FACTOR * max_bytes:
        message = await receive()
        if message["type"] != "http.request":
            return message
        part = message.get("body", b"")
        size += len(part)
        if size <= max_bytes:
            parts.append(part)
        if not message.get("more_body", False):
            break
    if size > max_bytes:
        return None
    return {"type": "http.request", "body": b"".join(parts), "more_body": False}
